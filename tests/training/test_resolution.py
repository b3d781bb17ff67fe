"""Tests of rebar.training.resolution, against ffcv-imagenet's formula."""

import itertools
from typing import Any

import numpy as np
import pytest

from rebar.errors import RebarError
from rebar.training.resolution import ResolutionConfig

RECIPES = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}  # epochs: ramp


def reference(epoch: int, low: int, high: int, start: int, end: int) -> int:
    """Round linear interpolation to a multiple of 32; numpy rounds halves to even."""
    if epoch <= start:
        return low
    return high if epoch >= end else int(np.round(np.interp(epoch, [start, end], [low, high]) / 32)) * 32


@pytest.mark.parametrize(("epochs", "ramp"), RECIPES.items())
@pytest.mark.parametrize(("low", "high"), [(160, 192), (128, 224), (160, 160), (100, 200)])
def test_resolution_equals_the_reference_for_every_recipe(
    epochs: int, ramp: tuple[int, int], low: int, high: int
) -> None:
    config = ResolutionConfig(min_res=low, max_res=high, start_ramp=ramp[0], end_ramp=ramp[1])
    resolutions = [config.at(epoch) for epoch in range(epochs)]
    assert resolutions == [reference(epoch, low, high, *ramp) for epoch in range(epochs)]


def test_resolution_equals_values_computed_by_hand() -> None:
    recipe = ResolutionConfig(min_res=160, max_res=192, start_ramp=11, end_ramp=13)
    assert [recipe.at(epoch) for epoch in range(10, 16)] == [160, 160, 192, 192, 192, 192]  # 176 / 32 = 5.5
    steep = ResolutionConfig(min_res=96, max_res=224, start_ramp=0, end_ramp=4)
    assert [steep.at(epoch) for epoch in range(6)] == [96, 128, 160, 192, 224, 224]
    fine = ResolutionConfig(min_res=96, max_res=224, start_ramp=0, end_ramp=4, round_to=20)
    assert [fine.at(epoch) for epoch in range(5)] == [96, 120, 160, 200, 224]


def test_resolution_grows_in_steps_of_round_to() -> None:
    fine = ResolutionConfig(min_res=88, max_res=176, start_ramp=14, end_ramp=29, round_to=4)
    sizes = [fine.at(epoch) for epoch in range(36)]
    assert sizes[:15] == [88] * 15
    assert sizes[29:] == [176] * 7
    assert all(later - size in (4, 8) for size, later in itertools.pairwise(sizes[14:30]))


def test_without_a_ramp_max_res_follows_the_first_epoch() -> None:
    config = ResolutionConfig(min_res=128, max_res=192)
    assert [config.at(epoch) for epoch in range(3)] == [128, 192, 192]


def test_resolution_is_never_zero() -> None:
    config = ResolutionConfig(min_res=4, max_res=12, start_ramp=0, end_ramp=4)
    assert [config.at(epoch) for epoch in range(5)] == [4, 32, 32, 32, 12]


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"min_res": 192, "max_res": 160}, "max_res 160"),
        ({"start_ramp": 13, "end_ramp": 11}, "end_ramp 11"),
    ],
)
def test_descending_ramp_is_rejected(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(RebarError, match=name) as error:
        ResolutionConfig(**wrong)
    assert error.value.code == "config-conflict"
