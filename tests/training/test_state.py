"""Tests of rebar.training.state."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rebar.optim.averaging import AveragePhase, WeightAverage
from rebar.optim.optimizers import build_optimizer, parameter_groups, set_learning_rate
from rebar.optim.options import OptimizerConfig
from rebar.optim.schedules import ScheduleSpan
from rebar.training.checkpoint import CheckpointError, HostMemory, save_checkpoint
from rebar.training.distributed import World
from rebar.training.execution import gradient_scaler
from rebar.training.metrics import TrainMeter
from rebar.training.state import TrainState

WORLD = World(rank=0, size=1, device=torch.device("cpu"))
OPTIONS: dict[str, Any] = {"training.weight_decay": 0.1, "lr.lr": 0.5, "data.train_dataset": "a.beton"}
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
    """Train some steps, whose result depends on momentum and random numbers."""
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
    save_checkpoint(path, state.checkpoint_content(OPTIONS, WORLD))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint after three steps."""
    state = make_state()
    train(state, 3)
    state.epoch, state.train_seconds, state.last_metrics = 2, 12.5, {"val/top1": 0.25}
    save(state, tmp_path / "last.pt")
    return tmp_path / "last.pt"


def test_load_continues_as_if_uninterrupted(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uninterrupted = train(make_state(), 6)
    resumed = make_state()
    torch.manual_seed(99)
    resumed.load(saved, OPTIONS, WORLD)
    assert train(resumed, 3) == uninterrupted[3:]
    assert (resumed.epoch, resumed.train_seconds, resumed.last_metrics) == (2, 12.5, {"val/top1": 0.25})
    assert capsys.readouterr().err == ""


def test_load_converts_momenta_to_the_layout_of_the_weights(tmp_path: Path) -> None:
    """Fused optimizers ignore strides."""

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
    after.load(tmp_path / "last.pt", OPTIONS, WORLD)
    for state in (before, after):
        step(state)
    for ours, theirs in zip(after.model.parameters(), before.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"arch": "resnet50"}, "--arch tiny"),
        ({"class_names": ["hen", "ostrich"]}, "3 classes"),
        ({"class_names": ["hen", "emu", "robin"]}, "'ostrich'"),
        ({"num_classes": 4}, "--num-classes 3"),
        ({"num_samples": 90}, "100 images"),
        ({"decay_downsample_bn": True}, "decay_downsample_bn"),
    ],
    ids=str,
)
def test_load_rejects_another_model_or_dataset(changes: dict[str, Any], fact: str, saved: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        make_state(**changes).load(saved, OPTIONS, WORLD)
    assert error.value.code == "checkpoint-mismatch"
    assert fact in str(error.value)
    assert str(saved) in str(error.value)


def test_load_warns_about_changed_options(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_state().load(saved, {**OPTIONS, "lr.lr": 0.7, "data.train_dataset": "b.beton"}, WORLD)
    assert capsys.readouterr().err == f"warning: resuming with lr.lr = 0.7; {saved} was trained with 0.5\n"


def test_load_keeps_the_weight_decay_of_the_new_configuration(saved: Path) -> None:
    state = make_state(weight_decay=0.2)
    state.load(saved, {**OPTIONS, "training.weight_decay": 0.2}, WORLD)
    assert [group["weight_decay"] for group in state.optimizer.param_groups] == [0.0, 0.2]


def test_checkpoint_content_rejects_a_nan_loss(saved: Path) -> None:
    before, state = saved.read_bytes(), make_state()
    state.meter.add(torch.tensor(float("nan")), torch.zeros(2, 3), torch.tensor([0, 1]))
    state.meter.end_step()
    with pytest.raises(CheckpointError) as error:
        save(state, saved)
    assert error.value.code == "training-diverged"
    assert saved.read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weights", "BatchNorm's statistics", "momenta", "average"])
def test_checkpoint_content_rejects_nan_and_infinity(where: str, value: float, saved: Path) -> None:
    before, state = saved.read_bytes(), make_state()
    state.average = WeightAverage(state.model, [AveragePhase(every=1, decay=0.9)])
    train(state, 2)
    state.epoch = 1
    state.checkpoint_content(OPTIONS, WORLD)
    linear, norm = state.model[0], state.model[1]  # type: ignore[index]
    tensors = {
        "weights": linear.weight,
        "BatchNorm's statistics": norm.running_var,
        "momenta": state.optimizer.state[linear.weight]["momentum_buffer"],
        "average": state.average.model[0].weight,  # type: ignore[index]
    }
    with torch.no_grad():
        tensors[where].flatten()[-1] = value
    with pytest.raises(CheckpointError) as error:
        save(state, saved)
    assert error.value.code == "training-diverged"
    assert saved.read_bytes() == before


def test_snapshot_of_the_content_is_independent_of_training() -> None:
    state = make_state()
    state.average = WeightAverage(state.model, [AveragePhase(every=1, decay=0.9)])
    train(state, 3)
    state.last_metrics = {"val/top1": 0.25}
    snapshot = HostMemory().copy(state.checkpoint_content(OPTIONS, WORLD))
    before = pickle.dumps(snapshot)
    train(state, 1)
    state.average.after_step(state.model, 3)
    state.last_metrics["val/top1"] = 0.5
    assert pickle.dumps(snapshot) == before


def test_weights_of_a_compiled_model_load_into_a_plain_one(tmp_path: Path) -> None:
    state = make_state()
    wrapped = make_state(model_seed=1)
    bare = wrapped.model
    wrapped.model = torch.compile(bare)  # type: ignore[assignment]
    save(wrapped, tmp_path / "last.pt")
    state.load(tmp_path / "last.pt", OPTIONS, WORLD)
    assert torch.equal(state.model[0].weight, bare[0].weight)  # type: ignore[index]


def test_load_falls_back_to_the_previous_checkpoint(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = make_state()
    state.epoch = 3
    save(state, saved)
    saved.write_bytes(saved.read_bytes()[:-1000])
    resumed = make_state()
    resumed.load(saved, OPTIONS, WORLD)
    assert resumed.epoch == 2
    assert "previous.pt" in capsys.readouterr().err
