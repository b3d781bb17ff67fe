"""Running sums of the training loss and accuracy, kept on the device so that the loop never waits."""

import torch

from rebar.training.distributed import World, sum_over_world


class TrainMeter:
    """Averages over an epoch; float64 sums on the device of count, loss and correct predictions."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count one batch with its mean loss. Queues work on the device; reads nothing back."""
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        count = len(labels)
        self._sums += torch.stack([torch.full_like(loss, count), loss.detach() * count, correct]).double()

    def averages(self, world: World) -> tuple[float, float]:
        """Mean loss and top-1 (a share of 1) over all processes. Waits for the device."""
        count, loss, correct = sum_over_world(self._sums.clone(), world).tolist()
        return loss / max(count, 1), correct / max(count, 1)
