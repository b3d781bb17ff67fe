"""Gradient checkpointing: forget what is inside the residual blocks, and compute it again going back.

Chen et al., "Training deep nets with sublinear memory cost", 2016. A third more computation for about half
of the memory; losses and gradients stay what they are.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class CheckpointedSequential(nn.Sequential):
    """Blocks one after the other, of which only the inputs are kept. Its state_dict is the plain one's."""

    def forward(self, x: Any) -> Any:
        if not self.training:
            return super().forward(x)
        for block in self:

            def contexts(block: nn.Module = block) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), _statistics_at_rest(block)

            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return x


@contextmanager
def _statistics_at_rest(block: nn.Module) -> Iterator[None]:
    """The second time round, a batch must not count in the running statistics again."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()  # to be thrown away
    try:
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter


def apply_gradient_checkpointing(model: nn.Module) -> int:
    """Checkpoint every block of the model's stages, in place; returns how many blocks.

    A stage is a Sequential directly in the model whose parts have parts of their own, as ``layer1`` to
    ``layer4`` of a ResNet.
    """
    blocks = 0
    for name, stage in model.named_children():
        if isinstance(stage, nn.Sequential) and len(stage) > 0 and all(list(block.children()) for block in stage):
            setattr(model, name, CheckpointedSequential(*stage))
            blocks += len(stage)
    return blocks
