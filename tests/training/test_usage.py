"""What is read of the machine, and that a reading that fails costs nothing but itself."""

import pynvml
import pytest
import torch

from rebar.training.distributed import World
from rebar.training.metrics import memory_metrics

GPU = World(rank=0, size=1, device=torch.device("cuda", 0))


@pytest.fixture(autouse=True)
def allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2_500_000_000)


def test_a_gpu_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 93)
    metrics = memory_metrics(GPU)
    assert metrics["gpu/utilization"] == pytest.approx(0.93)
    assert metrics["memory/gpu_peak_gb"] == 2.5


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
def test_a_reading_that_fails_is_left_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def utilization(_: torch.device) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    assert memory_metrics(GPU).keys() == {"memory/host_peak_gb", "memory/gpu_peak_gb"}


def test_torch_finds_nvidias_library() -> None:
    """Without nvidia-ml-py torch raises ModuleNotFoundError here, and no utilisation would ever be logged."""
    if torch.cuda.is_available():
        assert 0 <= torch.cuda.utilization() <= 100
    else:
        with pytest.raises((RuntimeError, pynvml.NVMLError)):  # the driver is what lacks
            torch.cuda.utilization(0)


def test_a_cpu_has_memory_alone() -> None:
    metrics = memory_metrics(World(rank=0, size=1, device=torch.device("cpu")))
    assert metrics.keys() == {"memory/host_peak_gb"}
    assert metrics["memory/host_peak_gb"] > 0.05
