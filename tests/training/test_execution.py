"""Tests of rebar.training.execution."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rebar.errors import RebarError
from rebar.loading.options import ResolutionConfig
from rebar.training import execution
from rebar.training.execution import (
    allow_tf32,
    autocast,
    compile_model,
    gradient_scaler,
    input_dtype,
    resolve_precision,
    rng_states,
    set_rng_states,
    split_microbatches,
)
from rebar.training.losses import build_criterion
from rebar.training.options import ExecutionConfig, LossConfig, Precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def compiled_graphs() -> Iterator[Callable[[], int]]:
    """Return a function that counts the graphs compiled since the test started."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def resolutions(config: ResolutionConfig, epochs: int) -> list[int]:
    return [config.at(epoch) for epoch in range(epochs)]


GROWING = resolutions(ResolutionConfig(min_res=88, max_res=176, start_ramp=2, end_ramp=30, round_to=4), 36)


def step(compiled: nn.Module, resolution: int) -> torch.Tensor:
    """Run a forward and backward pass."""
    x = torch.randn(2, 3, resolution, resolution).contiguous(memory_format=torch.channels_last)
    y: torch.Tensor = compiled(x)
    y.square().sum().backward()
    return y


@pytest.mark.parametrize(
    ("backend", "max_graphs"), [("aot_eager", 1), pytest.param("inductor", 3, marks=pytest.mark.nightly)]
)
def test_compile_model_shares_graph_between_many_resolutions(
    backend: str, max_graphs: int, compiled_graphs: Callable[[], int]
) -> None:
    """Inductor may recompile at sizes from which its CPU code differs: once or twice, but not 23 times."""
    assert len(set(GROWING)) == 23
    compiled = compile_model(model(), set(GROWING), backend=backend)
    for resolution in GROWING:
        step(compiled, resolution)
    assert compiled_graphs() <= max_graphs


def test_compile_model_compiles_a_graph_per_resolution_for_few(compiled_graphs: Callable[[], int]) -> None:
    compiled = compile_model(model(), {32, 40}, backend="aot_eager")
    for resolution in (32, 40, 40, 32):
        step(compiled, resolution)
    assert compiled_graphs() == 2


def test_compile_model_keeps_results_and_parameter_names(compiled_graphs: Callable[[], int]) -> None:
    plain, inner = model(), model()
    compiled = compile_model(inner, {32}, backend="aot_eager")
    torch.manual_seed(1)
    expected = step(plain, 32)
    torch.manual_seed(1)
    torch.testing.assert_close(step(compiled, 32), expected)
    assert compiled_graphs() == 1
    assert inner.state_dict().keys() == plain.state_dict().keys()
    for name, parameter in inner.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad)


def test_compile_model_rejects_unknown_backend() -> None:
    with pytest.raises(RebarError, match="fastest") as caught:
        compile_model(model(), {32}, backend="fastest")
    assert caught.value.code == "compile-unknown-backend"


def test_compile_model_and_gradient_checkpointing_exclude_each_other() -> None:
    with pytest.raises(RebarError) as caught:
        ExecutionConfig(compile_model=True, gradient_checkpointing=True)
    assert caught.value.code == "config-conflict"


@pytest.mark.parametrize("allowed", [True, False])
def test_allow_tf32_sets_matmul_and_cudnn(allowed: bool) -> None:
    allow_tf32(allowed)
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed


@pytest.mark.parametrize(
    ("precision", "device", "resolved"),
    [
        ("auto", CPU, "32"),
        ("32", CPU, "32"),
        ("auto", GPU, "fp16"),
        ("32", GPU, "32"),
        ("fp16", GPU, "fp16"),
    ],
)
def test_resolve_precision(
    precision: Precision, device: torch.device, resolved: Precision, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolve_precision(precision, device) == resolved
    assert capsys.readouterr().err == ""


def test_resolve_precision_replaces_fp16_on_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert resolve_precision("fp16", CPU) == "32"
    assert "fp16 needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "is_warned"),
    [
        ("flags\t: fpu avx2 avx512f", True),
        ("flags\t: fpu avx512f avx512_bf16", False),
        ("flags\t: fpu amx_bf16 amx_tile", False),
        ("Features\t: fp asimd bf16 i8mm", False),
        ("Features\t: fp asimd", True),
        (None, False),
    ],
)
def test_resolve_precision_warns_about_bf16_on_cpus_without_it(
    flags: str | None,
    is_warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(execution, "CPU_INFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"model name\t: CPU\n{flags}\n")
    assert resolve_precision("bf16", CPU) == "bf16"
    assert ("--training.precision 32" in capsys.readouterr().err) == is_warned


@pytest.mark.parametrize(("capability", "is_warned"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_resolve_precision_warns_about_bf16_on_old_gpu(
    capability: tuple[int, int], is_warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert resolve_precision("bf16", GPU) == "bf16"
    assert ("bf16 is slow on Tesla T4" in capsys.readouterr().err) == is_warned


@pytest.mark.parametrize(("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_dtype(precision: Precision, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_gradient_scaler_is_enabled_for_fp16_only() -> None:
    scalers = {precision: gradient_scaler(precision, CPU) for precision in ("32", "bf16", "fp16")}
    assert {precision: scaler.is_enabled() for precision, scaler in scalers.items()} == {
        "32": False,
        "bf16": False,
        "fp16": True,
    }


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_images_in_input_dtype_give_identical_results(precision: Precision) -> None:
    torch.manual_seed(0)
    convolution, images = torch.nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    with autocast(precision, CPU):
        assert torch.equal(convolution(images.to(input_dtype(precision))), convolution(images))


IMAGES = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 4


def gradients(count: int, targets: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return loss and gradient of the batch in ``count`` micro-batches, for a model without BatchNorm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(180, 4))
    criterion, loss = build_criterion(LossConfig(), label_smoothing=0.1), 0.0
    for micro in split_microbatches(model, IMAGES, targets, LABELS, count=count):
        assert len(micro.images) == len(micro.targets) == len(micro.labels)
        part = criterion(model(micro.images), micro.targets) * micro.weight
        part.backward()
        loss += part.item()
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("targets", [LABELS, F.one_hot(LABELS, 4).float().lerp(torch.full((4,), 0.25), 0.3)])
@pytest.mark.parametrize("count", [2, 3, 10, 25])  # 3 micro-batches have 4, 3 and 3 samples
def test_split_microbatches_gives_the_gradient_of_the_full_batch(count: int, targets: torch.Tensor) -> None:
    loss, gradient = gradients(1, targets)
    accumulated_loss, accumulated = gradients(count, targets)
    assert accumulated_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(accumulated, gradient, rtol=1e-5, atol=1e-7)


def test_split_microbatches_disables_ddp_sync_except_for_the_last() -> None:
    class Wrapped(nn.Module):
        """A stand-in for DistributedDataParallel that records whether no_sync is active."""

        syncs = True

        def no_sync(self) -> "Wrapped":
            return self

        def __enter__(self) -> None:
            self.syncs = False

        def __exit__(self, *_: object) -> None:
            self.syncs = True

    model = Wrapped()
    assert [model.syncs for _ in split_microbatches(model, IMAGES, LABELS, LABELS, count=3)] == [False, False, True]
    assert model.syncs


def draw() -> list[float]:
    return [torch.rand(1).item(), float(np.random.standard_normal()), random.gauss(0, 1)]


def test_set_rng_states_restores_all_generators(tmp_path: object) -> None:
    cpu = torch.device("cpu")
    draw()  # so that NumPy and Python have a cached second Gaussian
    torch.save(rng_states(cpu), f"{tmp_path}/states.pt")
    expected = [draw() for _ in range(3)]
    set_rng_states(torch.load(f"{tmp_path}/states.pt", weights_only=True), cpu)
    assert [draw() for _ in range(3)] == expected
