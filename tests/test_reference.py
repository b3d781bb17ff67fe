"""The training loop against an independent implementation of ffcv-imagenet's recipe in plain PyTorch.

The reference has only the batches and the initial weights in common with Rebar. It implements BlurPool, parameter
groups, learning rate and loss from ffcv-imagenet's description. Both compute in float64, because float32 rounding
errors grow a hundredfold within a few steps of such a small run and would hide a difference.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import train_imagenet
import write_dataset
from rebar.config import parse_config
from rebar.loading import Normalizer
from rebar.training import run as run_module
from rebar.training.build import open_data
from rebar.training.checkpoint import read_checkpoint
from rebar.training.config import TrainConfig
from rebar.training.distributed import World
from tests.conftest import Data, read_events

EPOCHS, PEAK, SMOOTHING, DECAY = 2, 0.1, 0.1, 5e-3
RECIPE = [
    "--use-blurpool",
    f"--lr={PEAK}",
    f"--weight-decay={DECAY}",
    f"--label-smoothing={SMOOTHING}",
    "--momentum=0.9",
    "--training.batch_size=32",
    "--min-res=16",
    "--max-res=24",
    "--end-ramp=1",
    "--round-to=8",
    "--validation.resolution=16",
    "--lr-tta=false",
    "--log-level=0",
    "--channels-last=false",
]


class BlurredConv(nn.Module):
    """A convolution after a blur with [1 2 1]⊗[1 2 1] / 16."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        line = torch.tensor([1.0, 2.0, 1.0])
        self.kernel = (line[:, None] * line[None, :] / 16)[None, None].repeat(conv.in_channels, 1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blurred: torch.Tensor = self.conv(F.conv2d(x, self.kernel, padding=1, groups=x.shape[1]))
        return blurred


def blur_strided(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(module, name, BlurredConv(child))
        else:
            blur_strided(child)


def reference_losses(
    config: TrainConfig, weights: dict[str, torch.Tensor], *, by_name: bool
) -> tuple[list[float], nn.Module]:
    """Train with the reference. Returns the loss of every step and the trained model."""
    world = World(rank=0, size=1, device=torch.device("cpu"))
    loader, _ = open_data(config, world)
    model = torchvision.models.resnet18(num_classes=10)
    model.load_state_dict(weights)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        exempt = "bn" in name if by_name else id(parameter) in norms or name.endswith("bias")
        (plain if exempt else decayed).append(parameter)
    blur_strided(model)
    optimizer = torch.optim.SGD(
        [{"params": plain, "weight_decay": 0}, {"params": decayed, "weight_decay": DECAY}], lr=1, momentum=0.9
    )
    mean = np.array([0.485, 0.456, 0.406]) * 255
    std = np.array([0.229, 0.224, 0.225]) * 255
    normalize = Normalizer(world.device, torch.float64)
    losses, steps = [], len(loader)
    for epoch, resolution in enumerate((16, 24)):
        ends = np.interp([epoch, epoch + 1], [0, 1, EPOCHS], [1e-4 * PEAK, PEAK, 0])
        rates = np.interp(np.arange(steps), [0, steps], ends)
        for rate, batch in zip(rates, loader.epoch(epoch, resolution), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = float(rate)
            images, labels = normalize(batch)
            exact = ((batch.images.numpy() - mean) / std).transpose(0, 3, 1, 2)
            np.testing.assert_allclose(images.numpy(), exact, atol=1e-6)
            optimizer.zero_grad()
            log_p = torch.log_softmax(model(images), dim=1)
            correct = log_p[torch.arange(len(images)), labels]
            loss = -((1 - SMOOTHING) * correct + SMOOTHING * log_p.mean(1)).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, model


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(run_module, "input_dtype", lambda precision: torch.float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64", "without_plots")
@pytest.mark.parametrize("by_name", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_train_steps_equals_reference_implementation(by_name: bool, data: Data, tmp_path: Path) -> None:
    few = tmp_path / "few.beton"
    write_dataset.main(["--split=train", f"--data-dir={data.tree}", f"--write-path={few}", "--subset=64"])
    args = data.training_command(
        tmp_path / "run",
        *RECIPE,
        "--arch=resnet18",
        f"--train-dataset={few}",
        f"--val-dataset={few}",
        f"--decay-downsample-bn={by_name}",
    )[1:]
    config = parse_config(TrainConfig, [str(arg) for arg in args], description="test")
    torch.manual_seed(config.training.seed)
    weights = torchvision.models.resnet18(num_classes=10).state_dict()
    expected, model = reference_losses(config, weights, by_name=by_name)

    train_imagenet.main([str(arg) for arg in args])
    losses = [record["train/loss"] for record in read_events(tmp_path / "run", "step")]
    assert len(losses) == 4
    np.testing.assert_allclose(losses, expected, rtol=1e-8)
    trained = read_checkpoint(tmp_path / "run/checkpoints/last.pt")["model"]
    for name in ("fc.weight", "bn1.running_var", "layer4.0.downsample.1.weight"):
        torch.testing.assert_close(trained[name], model.state_dict()[name], rtol=1e-6, atol=1e-9)
