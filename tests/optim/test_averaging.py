"""Weight averaging: EMA and SWA, compared with torch.optim.swa_utils."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from rebar.optim.averaging import AveragePhase, WeightAverage, build_average, ema_decay, update_bn, weights_to_evaluate
from rebar.optim.options import AveragingConfig

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, steps: int, after: Callable[[int], None], first: int = 0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        (model(X * (1 + step)) - X[:, :3]).square().mean().backward()
        optimizer.step()
        after(step)


def assert_close(a: nn.Module, b: nn.Module) -> None:
    """Compare all but BatchNorm's batch counters, which torch averages too."""
    for name, value in a.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_ema_equals_torch_averaged_model_with_buffers() -> None:
    model = new_model()
    ours = build_average(
        model, AveragingConfig(use_ema=True, ema_half_life=4, ema_update_every=2), epochs=1, steps_per_epoch=9
    )
    assert ours is not None
    decay = 2 ** (-2 / 4)
    theirs = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True)

    def after(step: int) -> None:
        ours.after_step(model, step)
        if step % 2 == 1:
            theirs.update_parameters(model)

    train(model, 11, after)
    assert ours.updates == 5
    assert_close(ours.model, theirs.module)


def test_ema_decay_halves_in_half_life_steps() -> None:
    assert ema_decay(100, 1) ** 100 == pytest.approx(0.5)
    assert ema_decay(100, 20) ** 5 == pytest.approx(0.5)


def test_swa_with_update_bn_equals_torch() -> None:
    model = new_model()
    ours = build_average(model, AveragingConfig(use_swa=True, swa_start=0.5), epochs=6, steps_per_epoch=4)
    assert ours is not None
    theirs = swa_utils.AveragedModel(model)

    def after(step: int) -> None:
        ours.after_step(model, step)
        if step + 1 in (16, 20, 24):  # the ends of epochs 4, 5 and 6
            theirs.update_parameters(model)

    train(model, 24, after)
    assert ours.updates == 3
    for (name, a), b in zip(ours.model.named_parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)

    batches = [(X * scale,) for scale in (1.0, 2.0, 3.0)]
    assert ours.needs_bn_update
    update_bn(ours.model, [*batches, (X * 100,)], count=3)
    swa_utils.update_bn(batches, theirs)
    assert_close(ours.model, theirs.module)
    assert not ours.model.training
    assert ours.model[1].momentum == model[1].momentum


def test_weight_average_resumes_identically() -> None:
    for config in (
        AveragingConfig(use_ema=True, ema_update_every=1),
        AveragingConfig(use_swa=True, swa_start=0),
        AveragingConfig(use_ema=True, ema_update_every=1, use_swa=True, swa_start=0.25),
        AveragingConfig(use_ema=True, ema_update_every=1, use_swa=True, swa_start=0.75),
    ):
        straight = new_model()
        uninterrupted = build_average(straight, config, epochs=4, steps_per_epoch=2)
        assert uninterrupted is not None
        train(straight, 8, lambda step, average=uninterrupted, model=straight: average.after_step(model, step))  # type: ignore[misc]

        model = new_model()
        average = build_average(model, config, epochs=4, steps_per_epoch=2)
        assert average is not None
        train(model, 4, lambda step, average=average, model=model: average.after_step(model, step))  # type: ignore[misc]
        saved = copy.deepcopy(average.state_dict())
        resumed = build_average(model, config, epochs=4, steps_per_epoch=2)
        assert resumed is not None
        resumed.load_state_dict(saved)
        train(model, 4, lambda step, average=resumed, model=model: average.after_step(model, step), first=4)  # type: ignore[misc]
        for name, value in uninterrupted.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name])


def test_weight_average_is_independent_of_the_model() -> None:
    model = new_model()
    average = WeightAverage(model, [AveragePhase(every=1, decay=0.5)])
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    before = {name: value.clone() for name, value in average.model.state_dict().items()}
    train(model, 1, lambda _: None)
    assert all(torch.equal(before[name], value) for name, value in average.model.state_dict().items())


def test_weights_to_evaluate_prefers_an_updated_average() -> None:
    model, average = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    assert weights_to_evaluate({"model": model}) is model
    assert weights_to_evaluate({"model": model, "average": None}) is model
    assert weights_to_evaluate({"model": model, "average": {"model": average, "updates": 0}}) is model
    assert weights_to_evaluate({"model": model, "average": {"model": average, "updates": 2}}) is average


def test_build_average_is_none_without_averaging() -> None:
    assert build_average(new_model(), AveragingConfig(), epochs=1, steps_per_epoch=1) is None


def test_swa_replaces_the_ema_at_the_end_of_the_first_epoch_it_averages() -> None:
    both = AveragingConfig(use_ema=True, ema_update_every=1, use_swa=True, swa_start=0.5)
    kinds = {
        "both": both,
        "ema": AveragingConfig(use_ema=True, ema_update_every=1),
        "swa": AveragingConfig(use_swa=True, swa_start=0.5),
    }
    model = new_model()
    averages = {name: build_average(model, config, epochs=4, steps_per_epoch=3) for name, config in kinds.items()}

    def after(step: int) -> None:
        for average in averages.values():
            assert average is not None
            average.after_step(model, step)
        if step in (5, 6, 8, 11):
            same = averages["ema" if step < 6 else "swa"]
            assert averages["both"] is not None
            assert same is not None
            if step != 6:  # within the epoch, the EMA of the epoch before is kept
                assert_close(averages["both"].model, same.model)
            assert averages["both"].needs_bn_update == (step >= 8)

    train(model, 12, after)
