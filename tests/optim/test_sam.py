"""Sharpness-aware steps: the gradient of the point uphill, taken from where the weights are."""

import pytest
import torch
from torch import nn

from rebar.optim.optimizers import OptimizerConfig
from rebar.optim.sam import perturbed_weights


def test_the_gradient_is_that_of_the_point_uphill() -> None:
    """On 3x² + y², at (1, 2): the gradient (6, 4) has the norm √52."""
    point = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)
    (1024 * (weights * point**2).sum()).backward()  # a scaled loss, as fp16's
    with perturbed_weights([point, nn.Parameter(torch.zeros(1))], rho=0.5):
        uphill = torch.tensor([1.0, 2.0]) + 0.5 * torch.tensor([6.0, 4.0]) / 52**0.5
        torch.testing.assert_close(point.detach(), uphill.double(), atol=1e-6, rtol=0)
        point.grad = None
        (weights * point**2).sum().backward()
    assert point.tolist() == [1.0, 2.0]
    torch.testing.assert_close(point.grad, 2 * weights * uphill, atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0])
def test_a_gradient_without_direction_moves_nothing(value: float) -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([value, 0.0, 0.0])
    with perturbed_weights([weight], rho=1):
        assert weight.tolist() == [1.0] * 3


def test_every_so_many_steps() -> None:
    due = OptimizerConfig(sam_rho=0.05, sam_every=3)
    assert [step for step in range(9) if due.sam_is_due(step)] == [2, 5, 8]
    assert not OptimizerConfig().sam_is_due(9)
