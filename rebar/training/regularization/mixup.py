"""MixUp: pictures and labels blended in pairs.

Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018.
"""

import torch


def mixup(
    images: torch.Tensor, targets: torch.Tensor, partners: torch.Tensor, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``share`` of each picture and the rest of its partner's; targets likewise.

    - images: float ``[n, c, h, w]``; targets: probabilities ``[n, classes]``; partners: int64 ``[n]``.
    """
    mixed = images.lerp(_take(images, partners), 1 - share)
    return mixed, targets.lerp(targets[partners], 1 - share)


def _take(images: torch.Tensor, partners: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 2, 3, 1).index_select(0, partners).permute(0, 3, 1, 2)
