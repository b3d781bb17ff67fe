"""Gradient checkpointing: recompute the activations of each residual block in the backward pass.

Chen et al., "Training deep nets with sublinear memory cost", 2016. It halves the activation memory for about a
third more computation. Losses, gradients and BatchNorm statistics do not change.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class CheckpointedSequential(nn.Sequential):
    """An ``nn.Sequential`` that stores only the input of each block. It has the same state_dict."""

    def forward(self, x: Any) -> Any:
        if not self.training:
            return super().forward(x)
        for block in self:

            def contexts(block: nn.Module = block) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), _frozen_running_stats(block)

            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return x


@contextmanager
def _frozen_running_stats(block: nn.Module) -> Iterator[None]:
    """Prevent the recomputed forward pass from updating the running statistics a second time."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()  # discarded afterwards
    try:
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter


def apply_gradient_checkpointing(model: nn.Module) -> int:
    """Checkpoint every block of the model's stages, in place. Return the number of blocks.

    A stage is a direct child of type ``nn.Sequential`` whose modules all have submodules, such as ``layer1`` to
    ``layer4`` of a ResNet.
    """
    blocks = 0
    for name, stage in model.named_children():
        if isinstance(stage, nn.Sequential) and len(stage) > 0 and all(list(block.children()) for block in stage):
            setattr(model, name, CheckpointedSequential(*stage))
            blocks += len(stage)
    return blocks
