"""The training step does not synchronize with the device."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.steps import ALL_RECIPES, Training, random_batch

SYNCHRONIZING = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "is_nonzero")
"""Name prefixes of operators that synchronize with the device, such as item(), tolist() and nonzero()."""
READ_CPU_TENSORS = ("mixup", "cutmix", "bce", "ema")
"""one_hot() checks labels on a CPU only; the average counts its updates there. test_step_gpu.py has them all."""


class SynchronizingCalls(TorchDispatchMode):
    """Collects the names of synchronizing operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = (
            [index for index in args[1] if index is not None and index.dtype == torch.bool] if name == "index" else []
        )
        if name.startswith(SYNCHRONIZING) or masks:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", sorted(ALL_RECIPES.keys() - {"fp16", "fp16_clipped", *READ_CPU_TENSORS}))
def test_train_steps_makes_no_synchronizing_call(recipe: str) -> None:
    training = Training("cpu", *ALL_RECIPES[recipe])
    with SynchronizingCalls() as calls:
        for _ in training.steps([random_batch(number, size=4) for number in range(2)]):
            training.state.meter.end_step()
    assert calls.names == []


def test_synchronizing_calls_are_detected() -> None:
    with SynchronizingCalls() as calls:
        values = torch.ones(3)
        values.sum().item()
        values[values > 0]
    assert calls.names == ["_local_scalar_dense", "index"]
