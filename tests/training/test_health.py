"""Trouble is told, once, and only where it is."""

import pytest
import torch

from rebar.errors import RebarError
from rebar.training.health import HealthWatch, check_finite, overflowed


def test_divergence_is_told_once() -> None:
    said: list[str] = []
    watch = HealthWatch(said.append)
    for step, loss in enumerate([2.3, 4.0, 2.0, 4.7, 9.0]):
        watch.on_loss(loss, step, lr=0.5)
    (message,) = said
    assert "from 2.3 to 4.7 at step 3" in message
    assert "now 0.5" in message


def test_starving_gets_advice_that_fits() -> None:
    for workers, expected in ((2, "--num-workers, now 2"), (8, "all cores decode already")):
        said: list[str] = []
        watch = HealthWatch(said.append)
        watch.on_epoch(1, 0.9, workers, cores=8)  # cold
        watch.on_epoch(2, 0.1, workers, cores=8)
        assert said == []
        watch.on_epoch(3, 0.5, workers, cores=8)
        watch.on_epoch(4, 0.5, workers, cores=8)
        assert len(said) == 1
        assert expected in said[0]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_says_which(loss: float) -> None:
    assert check_finite(0.5, 3) == 0.5
    with pytest.raises(RebarError, match=f"the training loss became {loss} at or before step 3: .* Lower --lr"):
        check_finite(loss, 3)


def test_a_validation_loss_that_is_no_number_is_told() -> None:
    said: list[str] = []
    watch = HealthWatch(said.append)
    for epoch, loss in enumerate([2.0, float("nan"), float("inf")], start=1):
        watch.on_validation(loss, epoch)
    assert len(said) == 1
    assert "the validation loss of epoch 2 is nan" in said[0]


def test_one_value_among_many_is_found() -> None:
    sound = [torch.randn(3, 4), torch.zeros(0), torch.tensor(2**62), torch.full((5,), -1e18), torch.randn(2).half()]
    assert not overflowed(sound)
    for value in (float("nan"), float("inf"), -float("inf"), 1e20):
        assert overflowed([*sound, torch.tensor([1.0, value])])
