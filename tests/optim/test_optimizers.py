"""Parameter groups, optimizers compared with their formulas in NumPy, gradient clipping and SAM."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from rebar.models.build import build_model
from rebar.optim.optimizers import (
    SGDW,
    build_optimizer,
    clip_gradients,
    parameter_groups,
    perturbed_weights,
    set_learning_rate,
)
from rebar.optim.options import OptimizerConfig, OptimizerName
from rebar.training.config import unused_in_section


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return build_model("resnet50", num_classes=10, use_blurpool=True)


def names_of_groups(model: nn.Module, *, decay_downsample_bn: bool = False) -> tuple[list[str], list[str]]:
    """Return the names of the parameters without weight decay, and with."""
    plain, decayed = parameter_groups(model, 0.5, decay_downsample_bn=decay_downsample_bn)
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.5)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return [name_of[p] for p in plain["params"]], [name_of[p] for p in decayed["params"]]


@pytest.mark.parametrize("decay_downsample_bn", [False, True])
def test_parameter_groups_contain_every_parameter_once(decay_downsample_bn: bool, resnet50: nn.Module) -> None:
    plain, decayed = names_of_groups(resnet50, decay_downsample_bn=decay_downsample_bn)
    assert sorted(plain + decayed) == sorted(name for name, _ in resnet50.named_parameters())


def test_parameter_groups_exempt_normalization_and_biases(resnet50: nn.Module) -> None:
    plain, decayed = names_of_groups(resnet50)
    assert len(plain) == 53 * 2 + 1  # weights and biases of 53 BatchNorms, and the classifier's bias
    assert {"bn1.weight", "layer1.0.downsample.1.weight", "layer1.0.downsample.1.bias", "fc.bias"} <= set(plain)
    assert len(decayed) == 53 + 1  # 53 convolutions, and the classifier's weight
    assert all(resnet50.get_parameter(name).ndim in (2, 4) for name in decayed)


def test_decay_downsample_bn_groups_by_name_as_ffcv_imagenet(resnet50: nn.Module) -> None:
    plain, decayed = names_of_groups(resnet50, decay_downsample_bn=True)
    assert plain == [name for name, _ in resnet50.named_parameters() if "bn" in name]
    assert len(plain) == 49 * 2
    ours, _ = names_of_groups(resnet50)
    differing = {f"layer{n}.0.downsample.1.{kind}" for n in (1, 2, 3, 4) for kind in ("weight", "bias")}
    assert set(ours) - set(plain) == set(decayed) & set(ours) == differing | {"fc.bias"}


def test_parameter_groups_find_normalization_by_type() -> None:
    norms: list[nn.Module] = [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.SyncBatchNorm(4)]
    plain, decayed = names_of_groups(nn.Sequential(*norms, nn.Linear(4, 4)))
    assert plain == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias", "4.bias"]
    assert decayed == ["4.weight"]


def test_weight_decay_shrinks_only_its_group() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(1)
        model.bias.fill_(1)
    optimizer = build_optimizer("sgd", parameter_groups(model, 0.5), OptimizerConfig(), momentum=0.9, peak_lr=0.1)
    set_learning_rate(optimizer, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model.weight, torch.tensor(1 - 0.1 * 0.5))
    assert torch.equal(model.bias, torch.ones(2))
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]


# ------------------------------------------------------------------ optimizers against their formulas

RATES = [0.1, 0.4, 0.3, 0.0, 0.2]
SHAPES = [(3, 4), (5, 2, 3, 3), (4,)]  # the last has no weight decay
DEFAULTS = OptimizerConfig()
PLAIN = {"momentum": 0.9, "peak_lr": 0.4}


def start() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def groups_of(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    return [{"params": parameters[2:], "weight_decay": 0.0}, {"params": parameters[:2], "weight_decay": decay}]


def run(name: OptimizerName, decay: float, config: OptimizerConfig = DEFAULTS) -> list[NDArray[np.float64]]:
    """Return the parameters after a few steps of our optimizer, which is saved and restored in between."""
    parameters = start()
    optimizer = build_optimizer(name, groups_of(parameters, decay), config, **PLAIN)
    for step, rate in enumerate(RATES):
        set_learning_rate(optimizer, rate)
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
        if step == 2:  # save and restore
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = build_optimizer(name, groups_of(parameters, decay), config, **PLAIN)
            optimizer.load_state_dict(state)
    return [parameter.detach().double().numpy() for parameter in parameters]


def assert_equal(ours: list[NDArray[np.float64]], expected: list[NDArray[np.float64]]) -> None:
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def reference(update: Callable[..., NDArray[np.float64]], decay: float) -> list[NDArray[np.float64]]:
    """Return the parameters after the same steps in NumPy; ``update`` stores its state in ``memory``."""
    weights = [parameter.detach().double().numpy().copy() for parameter in start()]
    memories: list[dict[str, Any]] = [{} for _ in weights]
    for step, rate in enumerate(RATES):
        for number, gradient in enumerate(gradients(step)):
            own_decay = decay if number < 2 else 0.0
            weights[number] = update(
                weights[number], gradient.double().numpy(), memories[number], rate=rate, decay=own_decay
            )
    return weights


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_torch(nesterov: bool) -> None:
    parameters = start()
    theirs = torch.optim.SGD(groups_of(parameters, 0.01), lr=1.0, momentum=0.9, nesterov=nesterov)
    for step, rate in enumerate(RATES):
        set_learning_rate(theirs, rate)
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = gradient
        theirs.step()
    ours = run("sgd", 0.01, OptimizerConfig(nesterov=nesterov))
    assert_equal(ours, [parameter.detach().double().numpy() for parameter in parameters])


def test_sgdw_decay_is_proportional_to_lr_over_peak_lr() -> None:
    def update(w: Any, g: Any, memory: dict[str, Any], *, rate: float, decay: float) -> Any:
        memory["m"] = g if "m" not in memory else 0.9 * memory["m"] + g
        return w * (1 - rate / 0.4 * decay) - rate * memory["m"]

    assert_equal(run("sgdw", 0.03), reference(update, 0.03))


def test_sgdw_does_not_decay_if_gradients_overflowed() -> None:
    parameters = start()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = SGDW(groups_of(parameters, 0.03), peak_lr=0.4, lr=0.4, fused=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)  # weight decay only
    optimizer.grad_scale = torch.tensor(1.0)
    optimizer.found_inf = torch.tensor(1.0)  # as GradScaler sets it on a fused optimizer
    optimizer.step()
    assert all(torch.equal(parameter, old) for parameter, old in zip(parameters, before, strict=True))
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert torch.allclose(parameters[0], before[0] * 0.97)


@pytest.mark.parametrize("name", ["sgd", "sgdw"])
def test_first_step_with_overflow_has_no_effect(name: OptimizerName) -> None:
    def train(overflows: int) -> list[nn.Parameter]:
        parameters = start()
        optimizer = build_optimizer(name, groups_of(parameters, 0.03), OptimizerConfig(nesterov=True), **PLAIN)
        set_learning_rate(optimizer, 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
        scaler.scale(torch.ones(()))  # initializes the scale
        for step in range(overflows + 2):
            for parameter, gradient in zip(parameters, gradients(step - overflows), strict=True):
                parameter.grad = (
                    torch.full_like(parameter, torch.inf) if step < overflows else gradient * scaler.get_scale()
                )
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 4.0 * 0.5**overflows
        return parameters

    torch.full((1 << 20,), 1e30)  # garbage for uninitialized momentum buffers
    for found, expected in zip(train(overflows=2), train(overflows=0), strict=True):
        assert torch.equal(found, expected)


def test_lamb_equals_formula() -> None:
    def update(w: Any, g: Any, memory: dict[str, Any], *, rate: float, decay: float) -> Any:
        t = memory["t"] = memory.get("t", 0) + 1
        memory["m"] = 0.8 * memory.get("m", 0) + 0.2 * g
        memory["v"] = 0.95 * memory.get("v", 0) + 0.05 * g**2
        r = (memory["m"] / (1 - 0.8**t)) / (np.sqrt(memory["v"] / (1 - 0.95**t)) + 1e-3) + decay * w
        trust = np.linalg.norm(w) / np.linalg.norm(r) if decay else 1.0
        return w - rate * trust * r

    config = OptimizerConfig(lamb_beta1=0.8, lamb_beta2=0.95, lamb_eps=1e-3)
    assert_equal(run("lamb", 0.02, config), reference(update, 0.02))


def test_lars_equals_formula() -> None:
    def update(w: Any, g: Any, memory: dict[str, Any], *, rate: float, decay: float) -> Any:
        norms = np.linalg.norm(w), np.linalg.norm(g)
        trust = 0.05 * norms[0] / (norms[1] + decay * norms[0]) if decay else 1.0
        memory["m"] = 0.9 * memory.get("m", 0) + trust * (g + decay * w)
        return w - rate * memory["m"]

    assert_equal(run("lars", 0.02, OptimizerConfig(lars_trust=0.05)), reference(update, 0.02))


@pytest.mark.parametrize("name", ["lamb", "lars", "sgdw"])
def test_optimizers_handle_zero_weights_and_missing_gradients(name: OptimizerName) -> None:
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    optimizer = build_optimizer(name, groups_of(parameters, 0.1), OptimizerConfig(), **PLAIN)
    set_learning_rate(optimizer, 0.1)
    parameters[0].grad = torch.zeros(2, 2)
    parameters[2].grad = torch.ones(2)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in parameters)
    assert torch.equal(parameters[1], torch.ones(2, 2))


def test_clip_gradients_limits_total_norm() -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for limit, expected in ((0.0, 4.0), (8.0, 4.0), (1.0, 1.0)):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        clip_gradients(model, optimizer, scaler, limit)  # 16 ones have a norm of 4
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert grads.norm() == pytest.approx(expected, rel=1e-4)


def test_perturbed_weights_give_gradient_at_perturbed_point() -> None:
    """For 3x² + y² at (1, 2), the gradient (6, 4) has a norm of √52."""
    point = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)
    (1024 * (weights * point**2).sum()).backward()  # scaled, as for fp16
    with perturbed_weights([point, nn.Parameter(torch.zeros(1))], rho=0.5):
        perturbed = torch.tensor([1.0, 2.0]) + 0.5 * torch.tensor([6.0, 4.0]) / 52**0.5
        torch.testing.assert_close(point.detach(), perturbed.double(), atol=1e-6, rtol=0)
        point.grad = None
        (weights * point**2).sum().backward()
    assert point.tolist() == [1.0, 2.0]
    torch.testing.assert_close(point.grad, 2 * weights * perturbed, atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0])
def test_perturbed_weights_do_not_move_without_finite_gradient(value: float) -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([value, 0.0, 0.0])
    with perturbed_weights([weight], rho=1):
        assert weight.tolist() == [1.0] * 3


def test_sam_is_due_every_sam_every_steps() -> None:
    config = OptimizerConfig(sam_rho=0.05, sam_every=3)
    assert [step for step in range(9) if config.sam_is_due(step)] == [2, 5, 8]
    assert not OptimizerConfig().sam_is_due(9)


def test_options_of_other_optimizers_are_reported_as_unused() -> None:
    config = OptimizerConfig(nesterov=True, lamb_eps=1e-5)
    assert [s.split(" ")[0] for s in unused_in_section("optimizer", config, config.conditions("lamb"))] == [
        "optimizer.nesterov"
    ]
    assert [s.split(" ")[0] for s in unused_in_section("optimizer", config, config.conditions("sgd"))] == [
        "optimizer.lamb_eps"
    ]
