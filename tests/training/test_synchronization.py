"""The training step makes no call that waits for the device, and keeps all its tensors there."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train_imagenet
from rebar.loading import Batch
from rebar.training.build import build_run
from rebar.training.command_line import parse_command_line
from rebar.training.distributed import World
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


TECHNIQUES = pytest.mark.parametrize(
    "options",
    [
        "--use-mixup --use-cutmix --use-ema --ema-update-every 1 --label-smoothing 0.1 --accumulate 2",
        "--use-randaugment --clip-norm 1 --random-erasing 0.5 --stochastic-depth 0.1",
        "--optimizer lamb --loss-type bce --use-trivialaugment --color-jitter 0.3",
        "--optimizer lars --use-swa --swa-start 0",
        "--optimizer sgdw --sam-rho 0.5 --sam-every 1 --use-blurpool",
    ],
)


@TECHNIQUES
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


@TECHNIQUES
def test_training_step_keeps_all_tensors_on_the_device(options: str, data: Data, tmp_path: Path) -> None:
    """Tensors of torch's meta device have no values. Most operations refuse to combine them with others."""
    world = World(0, 1, torch.device("meta"))
    command = data.training_command(tmp_path / "run", *options.split())
    run = build_run(parse_command_line([str(arg) for arg in command[1:]]), world)
    for group in run.state.optimizer.param_groups:
        group["fused"] = False  # meta has no fused kernels
    batches = itertools.islice(run.train_loader.epoch(0, 16), 3)
    losses = list(train_imagenet.train_steps(run, batches, learning_rate=lambda step: 0.1))
    assert [loss.device for loss in losses] == [world.device] * 3
    state = [value for values in run.state.optimizer.state.values() for value in values.values()]
    assert all(value.device == world.device for value in state if isinstance(value, torch.Tensor))


def test_a_tensor_on_the_cpu_is_refused_by_the_device() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(3, device="meta") + torch.ones(3)
    with pytest.raises(RuntimeError):
        torch.ones(1, device="meta").item()


def test_synchronizing_calls_are_recognized() -> None:
    values = torch.arange(4.0)
    for call in (values[0].item, values.nonzero, lambda: bool(values[0]), lambda: values[values > 1]):
        with SynchronizingCalls() as calls:
            call()
        assert calls.names != []
