"""Tests of rebar.training.health."""

import pytest
import torch

from rebar.errors import RebarError
from rebar.training.health import HealthWatch, check_finite, has_overflowed


def test_on_loss_warns_about_divergence_once() -> None:
    warnings: list[str] = []
    watch = HealthWatch(warnings.append)
    for step, loss in enumerate([2.3, 4.0, 2.0, 4.7, 9.0]):
        watch.on_loss(loss, step, lr=0.5)
    (warning,) = warnings
    assert "from 2.3 to 4.7 at step 3" in warning
    assert "now 0.5" in warning


@pytest.mark.parametrize(("workers", "advice"), [(2, "--num-workers, now 2"), (8, "--max-resolution")])
def test_on_epoch_warns_about_waiting_for_data_once(workers: int, advice: str) -> None:
    warnings: list[str] = []
    watch = HealthWatch(warnings.append)
    watch.on_epoch(1, 0.9, workers, cores=8)  # cold caches
    watch.on_epoch(2, 0.1, workers, cores=8)
    assert warnings == []
    watch.on_epoch(3, 0.5, workers, cores=8)
    watch.on_epoch(4, 0.5, workers, cores=8)
    assert len(warnings) == 1
    assert advice in warnings[0]


def test_on_validation_warns_about_nan_once() -> None:
    warnings: list[str] = []
    watch = HealthWatch(warnings.append)
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
