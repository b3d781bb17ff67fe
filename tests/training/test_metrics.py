"""Tests of rebar.training.metrics; of time estimates with a fake clock."""

import math
import time
from collections.abc import Iterator

import pynvml
import pytest
import torch

from rebar.errors import RebarError
from rebar.training.distributed import World
from rebar.training.metrics import (
    MIN_STEPS,
    HealthMonitor,
    TimeEstimate,
    TrainMeter,
    check_finite,
    has_overflowed,
    memory_metrics,
)


def one_hot(labels: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), 4).float()


def test_averages_weight_batches_by_their_size(world: World) -> None:
    meter = TrainMeter(world.device)
    meter.add(torch.tensor(1.0), one_hot([0, 1, 2]), torch.tensor([0, 1, 3]))  # two of three correct
    meter.add(torch.tensor(5.0), one_hot([3]), torch.tensor([0]))  # none of one correct
    assert meter.averages(world) == (2.0, 0.5)
    assert meter.averages(world) == (2.0, 0.5)


def test_add_accepts_bfloat16_and_keeps_no_graph(world: World) -> None:
    weight = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    meter = TrainMeter(world.device)
    for _ in range(1000):  # bfloat16 is exact up to 256 only
        logits = one_hot([1]).to(torch.bfloat16) * weight
        meter.add(logits.sum(), logits, torch.tensor([1]))
    assert meter.averages(world) == (1.0, 1.0)


def test_averages_without_samples_and_with_nan(world: World) -> None:
    meter = TrainMeter(world.device)
    assert meter.averages(world) == (0.0, 0.0)
    meter.add(torch.tensor(float("nan")), one_hot([0]), torch.tensor([0]))
    loss, top1 = meter.averages(world)
    assert math.isnan(loss)
    assert top1 == 1.0


def test_load_state_dict_resumes_the_epoch(world: World) -> None:
    meter = TrainMeter(world.device)
    for _ in meter.timed(range(3)):
        meter.add(torch.tensor(1.0), one_hot([0, 1, 2]), torch.tensor([0, 1, 3]))
        meter.end_step()
    resumed = TrainMeter(world.device)
    resumed.load_state_dict(meter.state_dict(world), world)
    assert list(resumed.timed("ab")) == ["a", "b"]
    assert (resumed.steps, resumed.steps_of_attempt) == (3, 0)
    resumed.add(torch.tensor(5.0), one_hot([3]), torch.tensor([0]))
    resumed.end_step()
    assert (resumed.steps, resumed.steps_of_attempt) == (4, 1)
    assert resumed.averages(world) == (1.4, 0.6)
    assert resumed.seconds > meter.wait_seconds


class Clock:
    """A fake clock."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def items(self, *waits: float) -> Iterator[int]:
        for number, wait in enumerate(waits):
            self.now += wait
            yield number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(time, "perf_counter", fake)
    return fake


def test_wait_seconds_exclude_the_consumer(world: World, clock: Clock) -> None:
    meter = TrainMeter(world.device)
    seen = []
    for item in meter.timed(clock.items(3, 0, 5)):
        seen.append(item)
        clock.now += 1000
    assert seen == [0, 1, 2]
    assert meter.wait_seconds == 8
    clock.now += 50
    assert meter.seconds == 3058
    meter.stop_clock()
    clock.now += 50
    assert meter.seconds == 3058


def test_wait_seconds_include_the_wait_for_a_failing_batch(world: World, clock: Clock) -> None:
    def failing() -> Iterator[int]:
        clock.now += 7
        raise OSError("disk")
        yield 0

    meter = TrainMeter(world.device)
    with pytest.raises(OSError, match="disk"):
        next(meter.timed(failing()))
    assert meter.wait_seconds == 7


# ------------------------------------------------------------------ memory

GPU = World(rank=0, size=1, device=torch.device("cuda", 0))


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2_500_000_000)


@pytest.mark.usefixtures("allocated")
def test_memory_metrics_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 93)
    metrics = memory_metrics(GPU)
    assert metrics["gpu/utilization"] == pytest.approx(0.93)
    assert metrics["memory/gpu_peak_gb"] == 2.5


@pytest.mark.usefixtures("allocated")
@pytest.mark.parametrize(
    "error",
    [
        pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED),  # under MIG
        pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION),
        ModuleNotFoundError("nvidia-ml-py does not seem to be installed"),
        RuntimeError("cuda driver can't be loaded"),
    ],
    ids=str,
)
def test_memory_metrics_without_utilization_if_nvml_fails(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def utilization(_: torch.device) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    assert memory_metrics(GPU).keys() == {"memory/host_peak_gb", "memory/gpu_peak_gb"}


def test_torch_finds_nvml() -> None:
    """Without nvidia-ml-py torch raises ModuleNotFoundError, and utilization is never logged."""
    if torch.cuda.is_available():
        assert 0 <= torch.cuda.utilization() <= 100
    else:
        with pytest.raises((RuntimeError, pynvml.NVMLError)):  # without a driver
            torch.cuda.utilization(0)


def test_memory_metrics_of_a_cpu() -> None:
    metrics = memory_metrics(World(rank=0, size=1, device=torch.device("cpu")))
    assert metrics.keys() == {"memory/host_peak_gb"}
    assert metrics["memory/host_peak_gb"] > 0.05


def test_on_loss_warns_about_divergence_once() -> None:
    warnings: list[str] = []
    watch = HealthMonitor(warnings.append)
    for step, loss in enumerate([2.3, 4.0, 2.0, 4.7, 9.0]):
        watch.on_loss(loss, step, lr=0.5)
    (warning,) = warnings
    assert "from 2.3 to 4.7 at step 3" in warning
    assert "now 0.5" in warning


@pytest.mark.parametrize(("workers", "advice"), [(2, "--num-workers, now 2"), (8, "--max-resolution")])
def test_on_epoch_warns_about_waiting_for_data_once(workers: int, advice: str) -> None:
    warnings: list[str] = []
    watch = HealthMonitor(warnings.append)
    watch.on_epoch(1, 0.9, workers, cores=8)  # cold caches
    watch.on_epoch(2, 0.1, workers, cores=8)
    assert warnings == []
    watch.on_epoch(3, 0.5, workers, cores=8)
    watch.on_epoch(4, 0.5, workers, cores=8)
    assert len(warnings) == 1
    assert advice in warnings[0]


def test_on_validation_warns_about_nan_once() -> None:
    warnings: list[str] = []
    watch = HealthMonitor(warnings.append)
    for epoch, loss in enumerate([2.0, float("nan"), float("inf")], start=1):
        watch.on_validation(loss, epoch)
    assert len(warnings) == 1
    assert "the validation loss of epoch 2 is nan" in warnings[0]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_check_finite_rejects_nan_and_infinity(loss: float) -> None:
    assert check_finite(0.5, 3) == 0.5
    with pytest.raises(RebarError) as error:
        check_finite(loss, 3)
    assert error.value.code == "training-diverged"
    assert f"{loss} at or before step 3" in str(error.value)


def test_has_overflowed_finds_a_single_value() -> None:
    finite = [torch.randn(3, 4), torch.zeros(0), torch.tensor(2**62), torch.full((5,), -1e18), torch.randn(2).half()]
    assert not has_overflowed(finite)
    for value in (float("nan"), float("inf"), -float("inf"), 1e20):
        assert has_overflowed([*finite, torch.tensor([1.0, value])])


def shown(resolutions: list[int], steps: list[tuple[int, float]], **options: int) -> list[str]:
    """Return the lines printed when steps are logged at the given seconds; an epoch has 100 steps of 64 images."""
    lines: list[str] = []
    now = 0.0
    estimate = TimeEstimate(
        resolutions, steps_per_epoch=100, global_batch=64, show=lines.append, clock=lambda: now, **options
    )
    for step, now in steps:  # noqa: B007
        estimate.on_logged_step(step)
    return lines


def test_estimate_skips_the_first_step_and_is_shown_once() -> None:
    steps = [(0, 30.0), (MIN_STEPS - 1, 48.0), (50, 80.0), (99, 129.0)]  # 1 s per step after a slow start
    (line,) = shown([32, 32, 32], steps)
    assert line.startswith("time left: about 4 min for 3 epochs")  # 249 seconds
    assert "64 images/s and 32 px (measured over 50 steps)" in line


def test_estimate_scales_with_the_number_of_pixels() -> None:
    (line,) = shown([32, 64], [(0, 0.0), (59, 59.0)])
    assert "about 7 min" in line  # 40 seconds of this epoch, 400 of the next


def test_estimate_of_a_resumed_run_counts_the_steps_left() -> None:
    (line,) = shown([32, 32, 32], [(210, 0.0), (249, 39.0)])
    assert "about 50 s for 1 epoch, " in line


def test_estimate_respects_max_steps() -> None:
    (line,) = shown([32, 32, 32], [(0, 0.0), (29, 29.0)], max_steps=40)
    assert "about 10 s" in line


@pytest.mark.parametrize("steps", [[(0, 0.0), (MIN_STEPS - 1, 5.0)], [(90, 0.0), (111, 10.0)]])
def test_estimate_needs_enough_steps_of_one_epoch(steps: list[tuple[int, float]]) -> None:
    assert shown([32, 32], steps) == []
