"""Recompute the BatchNorm statistics of averaged weights, like ``torch.optim.swa_utils.update_bn``.

torch's function puts the complete model into train mode, which also enables dropout and stochastic depth, and supports
neither autocast nor several ranks.
"""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rebar.training.distributed import World, sum_over_world
from rebar.training.execution import Precision, autocast


@torch.no_grad()
def update_bn(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, ...]], *, count: int, world: World, precision: Precision
) -> None:
    """Set the running statistics to their mean over the first ``count`` batches of every rank, in place.

    Every rank needs the same number of batches. Leaves the model in eval mode.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for images, *_ in islice(batches, count):
        with autocast(precision, world.device):
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                sum_over_world(statistic, world).div_(world.size)
    model.eval()
