"""Resuming: everything comes back, and what does not fit is refused or told."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rebar.optim.averaging import WeightAverage
from rebar.optim.optimizers import OptimizerConfig, build_optimizer, parameter_groups, set_learning_rate
from rebar.optim.schedules import ScheduleSpan
from rebar.training.checkpoint import CheckpointError, save_checkpoint
from rebar.training.distributed import World
from rebar.training.execution import gradient_scaler
from rebar.training.metrics import TrainMeter
from rebar.training.state import TrainState

WORLD = World(rank=0, size=1, device=torch.device("cpu"))
SETTINGS: dict[str, Any] = {"training.weight_decay": 0.1, "lr.lr": 0.5, "data.train_dataset": "a.beton"}
X = torch.linspace(-1, 1, 20).view(4, 5)
IMAGES = torch.linspace(-1, 1, 600).view(2, 3, 10, 10).sin()


def make_state(
    *,
    model_seed: int = 0,
    num_classes: int = 3,
    weight_decay: float = 0.1,
    decay_downsample_bn: bool = False,
    **changes: Any,
) -> TrainState:
    torch.manual_seed(model_seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))
    groups = parameter_groups(model, weight_decay, decay_downsample_bn=decay_downsample_bn)
    optimizer = build_optimizer("sgd", groups, OptimizerConfig(), momentum=0.9, peak_lr=0.1)
    chosen: dict[str, Any] = {
        "arch": "tiny",
        "num_classes": num_classes,
        "class_names": ["hen", "ostrich", "robin"],
        "precision": "32",
        "scaler": gradient_scaler("32", WORLD.device),
        "meter": TrainMeter(WORLD.device),
        "schedule": ScheduleSpan(epochs=2),
        "num_samples": 100,
        "global_batch": 10,
    }
    return TrainState(model=model, optimizer=optimizer, **chosen | changes)


def train(state: TrainState, steps: int) -> list[float]:
    """Some steps whose result depends on momentum and on torch's random numbers."""
    losses = []
    for _ in range(steps):
        set_learning_rate(state.optimizer, 0.1)
        state.optimizer.zero_grad()
        loss = state.model(X + 0.1 * torch.randn(X.shape)).square().mean()
        loss.backward()
        state.optimizer.step()
        losses.append(loss.item())
    return losses


def save(state: TrainState, path: Path) -> None:
    content = state.take_checkpoint(SETTINGS, WORLD)
    assert content is not None
    save_checkpoint(path, content)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint after three steps."""
    state = make_state()
    train(state, 3)
    state.epoch, state.train_seconds, state.last_metrics = 2, 12.5, {"val/top1": 0.25}
    save(state, tmp_path / "last.pt")
    return tmp_path / "last.pt"


def test_a_resumed_run_is_the_uninterrupted_one(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uninterrupted = train(make_state(), 6)
    resumed = make_state()
    torch.manual_seed(99)
    resumed.load(saved, SETTINGS, WORLD)
    assert train(resumed, 3) == uninterrupted[3:]
    assert (resumed.epoch, resumed.train_seconds, resumed.last_metrics) == (2, 12.5, {"val/top1": 0.25})
    assert capsys.readouterr().err == ""


def test_momenta_take_the_layout_of_the_weights(tmp_path: Path) -> None:
    """A fused step goes through the memory of both side by side."""

    def convolution_state(layout: torch.memory_format) -> TrainState:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
        model(IMAGES)
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
        optimizer = build_optimizer("sgd", parameter_groups(model, 0.1), OptimizerConfig(), momentum=0.9, peak_lr=0.1)
        state = make_state()
        state.model, state.optimizer = model, optimizer
        return state

    def step(state: TrainState) -> None:
        set_learning_rate(state.optimizer, 0.1)
        state.optimizer.zero_grad()
        state.model(IMAGES).square().mean().backward()
        state.optimizer.step()

    before = convolution_state(torch.channels_last)
    step(before)
    save(before, tmp_path / "last.pt")
    after = convolution_state(torch.contiguous_format)
    after.load(tmp_path / "last.pt", SETTINGS, WORLD)
    for state in (before, after):
        step(state)
    for ours, theirs in zip(after.model.parameters(), before.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet50"}, "holds a tiny, not a resnet50: give --arch tiny"),
        ({"class_names": ["hen", "ostrich"]}, "knows 3 classes, the dataset has 2"),
        ({"class_names": ["hen", "emu", "robin"]}, "calls class 1 'ostrich', the dataset 'emu'"),
        ({"num_classes": 4}, "give --num-classes 3"),
        ({"num_samples": 90}, "was trained on 100 images, these are 90"),
        ({"decay_downsample_bn": True}, "decay_downsample_bn"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str, saved: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        make_state(**changes).load(saved, SETTINGS, WORLD)
    assert message in str(refused.value)
    assert str(saved) in str(refused.value)


def test_a_changed_setting_is_told(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_state().load(saved, {**SETTINGS, "lr.lr": 0.7, "data.train_dataset": "b.beton"}, WORLD)
    assert capsys.readouterr().err == f"warning: resuming with lr.lr = 0.7; {saved} was trained with 0.5\n"


def test_a_changed_weight_decay_has_the_effect_that_is_told(saved: Path) -> None:
    state = make_state(weight_decay=0.2)
    state.load(saved, {**SETTINGS, "training.weight_decay": 0.2}, WORLD)
    assert [group["weight_decay"] for group in state.optimizer.param_groups] == [0.0, 0.2]


def test_a_loss_that_is_no_number_is_not_saved(saved: Path) -> None:
    before, state = saved.read_bytes(), make_state()
    state.meter.add(torch.tensor(float("nan")), torch.zeros(2, 3), torch.tensor([0, 1]))
    state.meter.end_step()
    with pytest.raises(CheckpointError, match="became NaN or infinite in epoch 1, by step 1 of it"):
        save(state, saved)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weights", "BatchNorm's statistics", "momenta", "average"])
def test_weights_that_are_no_numbers_are_not_saved(where: str, value: float, saved: Path) -> None:
    before, state = saved.read_bytes(), make_state()
    state.average = WeightAverage(state.model, every=1, decay=0.9)
    train(state, 2)
    state.epoch = 1
    assert state.take_checkpoint(SETTINGS, WORLD) is not None
    linear, norm = state.model[0], state.model[1]  # type: ignore[index]
    tensors = {
        "weights": linear.weight,
        "BatchNorm's statistics": norm.running_var,
        "momenta": state.optimizer.state[linear.weight]["momentum_buffer"],
        "average": state.average.model[0].weight,  # type: ignore[index]
    }
    with torch.no_grad():
        tensors[where].flatten()[-1] = value
    with pytest.raises(CheckpointError, match="weights or their momenta became NaN or infinite in epoch 1: nothing"):
        save(state, saved)
    assert saved.read_bytes() == before


def test_a_checkpoint_that_was_taken_is_not_changed_by_training_on(saved: Path) -> None:
    state = make_state()
    state.average = WeightAverage(state.model, every=1, decay=0.9)
    train(state, 3)
    state.last_metrics = {"val/top1": 0.25}
    taken = state.take_checkpoint(SETTINGS, WORLD)
    before = pickle.dumps(taken)
    train(state, 1)
    state.average.after_step(state.model, 3)
    state.last_metrics["val/top1"] = 0.5
    assert pickle.dumps(taken) == before


def test_weights_saved_from_a_wrapped_model_are_read_into_a_bare_one(tmp_path: Path) -> None:
    state = make_state()
    wrapped = make_state(model_seed=1)
    bare = wrapped.model
    wrapped.model = torch.compile(bare)  # type: ignore[assignment]
    save(wrapped, tmp_path / "last.pt")
    state.load(tmp_path / "last.pt", SETTINGS, WORLD)
    assert torch.equal(state.model[0].weight, bare[0].weight)  # type: ignore[index]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = make_state()
    state.epoch = 3
    save(state, saved)
    saved.write_bytes(saved.read_bytes()[:-1000])
    resumed = make_state()
    resumed.load(saved, SETTINGS, WORLD)
    assert resumed.epoch == 2
    assert "going on from" in capsys.readouterr().err
