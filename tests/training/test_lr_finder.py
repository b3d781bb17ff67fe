"""Tests of rebar.training.lr_finder."""

import math
import random
from pathlib import Path

import pytest

from rebar.training.lr_finder import analyze, exponential_rates, plot_findings, smoothed


def test_exponential_rates_are_evenly_spaced_on_a_logarithmic_scale() -> None:
    rates = exponential_rates(7, lowest=1e-5, highest=10)
    assert rates == pytest.approx([10.0**power for power in range(-5, 2)])


def test_smoothed_keeps_a_constant() -> None:
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)


def test_analyze_finds_the_steepest_descent_before_the_minimum(tmp_path: Path) -> None:
    rates = exponential_rates(200, lowest=1e-5, highest=10)
    # on the logarithmic scale, the loss falls around 0.01 and rises around 1
    losses = [5 - 3 / (1 + (0.01 / rate) ** 2) + 8 / (1 + (1 / rate) ** 2) for rate in rates]
    found = analyze(rates, losses)
    assert found.steepest is not None
    assert found.minimum is not None
    assert 0.005 < found.steepest < 0.05 < found.minimum < 0.6
    advice = found.advice()
    for part in (0.1, 0.5, 1.0):
        assert f"{part * found.steepest:.3g}" in advice
    assert plot_findings(found, tmp_path / "new").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new/lr_range_test.json").exists()


def test_analyze_ignores_noise_before_the_descent() -> None:
    draw = random.Random(0)
    rates = exponential_rates(100, lowest=1e-5, highest=10)
    for _ in range(20):  # a fall by 0.6 around 0.01, noise of 0.2 in each loss
        losses = [2.5 - 0.6 / (1 + (0.01 / rate) ** 2) + draw.gauss(0, 0.2) for rate in rates[:80]]
        found = analyze(rates, losses)
        assert found.steepest is not None
        assert 0.005 < found.steepest < 0.06


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([2.3] * 100, id="flat"),
        pytest.param([2.3 + 0.001 * math.sin(i) for i in range(100)], id="noise"),
        pytest.param([2.3 + 0.1 * i for i in range(100)], id="rising"),
        pytest.param([2.3], id="one"),
    ],
)
def test_analyze_gives_no_result_if_the_loss_never_falls(losses: list[float], tmp_path: Path) -> None:
    found = analyze(exponential_rates(100, lowest=1e-5, highest=10), losses)
    assert found.steepest is None
    assert "never fell" in found.advice()
    plot_findings(found, tmp_path)
