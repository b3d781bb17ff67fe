"""Compiled steps on a GPU: same results as eager, and no unexpected recompilation."""

import pytest
import torch

from rebar.training.execution import compile_model
from tests.training.steps import Training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def compiled_training(sizes: set[int], *options: str) -> Training:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    training = Training("cuda", *options, arch="resnet10_small")
    training.run.model = compile_model(training.state.model, sizes, backend="inductor")
    return training


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_compiled_step_equals_eager_step() -> None:
    compiled = compiled_training({32}, "--training.use_blurpool=1")
    eager = Training("cuda", "--training.use_blurpool=1", arch="resnet10_small")
    assert compiled.losses(3) == pytest.approx(eager.losses(3), rel=5e-3)
    assert graphs() == 1


def test_two_resolutions_are_compiled_once_each() -> None:
    training = compiled_training({32, 48}, "--training.precision=bf16")
    for number, resolution in enumerate((32, 48, 32, 48, 48, 32)):
        loss = training.step(number, resolution)
    assert torch.isfinite(loss)
    assert graphs() == 2


def test_eight_resolutions_are_compiled_once() -> None:
    sizes = [32, 40, 48, 56, 64, 72, 80, 96]
    training = compiled_training(set(sizes), "--training.precision=bf16")
    for number, resolution in enumerate(sizes):
        loss = training.step(number, resolution)
        if number == 1:
            after_two = graphs()
    assert torch.isfinite(loss)
    assert graphs() == after_two <= 2
