"""The training step makes no call that waits for the device."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train_imagenet
from rebar.loading import Batch
from rebar.training.run import Run
from tests.conftest import Data, train_here

SYNCHRONIZING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique_dim"}
"""What ``item()``, ``bool(tensor)`` and ``torch.equal`` call; masks are recognized by their dtype."""


class SynchronizingCalls(TorchDispatchMode):
    """Collects the names of calls that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [index for index in args[1] if index is not None] if func._schema.name == "aten::index" else []
        if func._schema.name in SYNCHRONIZING or any(mask.dtype == torch.bool for mask in masks):
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        "--use-mixup --use-cutmix --use-ema --label-smoothing 0.1 --accumulate 2",
        "--use-randaugment --clip-norm 1 --random-erasing 0.5 --stochastic-depth 0.1",
        "--optimizer lamb --loss-type bce --use-trivialaugment --color-jitter 0.3",
        "--optimizer lars --use-swa --swa-start 0",
        "--sam-rho 0.5 --sam-every 1 --use-blurpool",
    ],
)
def test_training_step_does_not_wait_for_the_device(
    options: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = SynchronizingCalls()
    original = train_imagenet.train_steps

    def counted(
        run: Run, batches: Iterable[Batch], learning_rate: Callable[[int], float], first_step: int = 0
    ) -> Iterator[torch.Tensor]:
        steps = original(run, batches, learning_rate, first_step)
        while True:
            with calls:
                loss = next(steps, None)
            if loss is None:
                return
            yield loss  # the loop calls item() on it when it logs a step

    monkeypatch.setattr(train_imagenet, "train_steps", counted)
    train_here(*data.training_command(tmp_path / "run", "--max-steps", "3", *options.split()))
    assert calls.names == []


def test_synchronizing_calls_are_recognized() -> None:
    values = torch.arange(4.0)
    for call in (values[0].item, values.nonzero, lambda: bool(values[0]), lambda: values[values > 1]):
        with SynchronizingCalls() as calls:
            call()
        assert calls.names != []
