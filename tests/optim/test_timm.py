"""What the recipes of "ResNet strikes back" are made of, against timm's own: LAMB, BCE, mixing, RandAugment, cosine."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rebar.augment.mixing import cut_box, cutmix, mixup
from rebar.augment.operations import _applied, _drawn_magnitudes
from rebar.augment.rng import BatchPosition
from rebar.config import build_config, load_config_files
from rebar.models.resnets import import_torchvision
from rebar.optim.optimizers import OptimizerConfig, build_optimizer, clip_gradients, parameter_groups, set_learning_rate
from rebar.optim.schedules import LearningRateConfig, lr_at, peak_lr
from rebar.training.config import TrainConfig
from rebar.training.execution import gradient_scaler
from rebar.training.losses import LossConfig, build_criterion

import_torchvision()  # timm imports it
timm = pytest.importorskip("timm", reason="timm is not installed (scripts/requirements-dev.txt)")
from timm.data.auto_augment import AugmentOp, rand_augment_transform  # noqa: E402
from timm.data.mixup import Mixup, mixup_target, rand_bbox  # noqa: E402
from timm.loss import BinaryCrossEntropy  # noqa: E402
from timm.optim import Lamb  # noqa: E402
from timm.scheduler import CosineLRScheduler  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[2] / "rn50_configs"
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(6, 3, 12, 10, generator=GENERATOR)
LOGITS = torch.randn(6, 7, generator=GENERATOR)
LABELS = torch.tensor([0, 3, 1, 6, 4, 3])
FLIPPED = torch.arange(6).flip(0)  # timm's partner is the sample as far from the other end


def recipe(name: str) -> TrainConfig:
    values = load_config_files([CONFIGS / f"{name}.yaml"])
    return build_config(TrainConfig, {**values, "data.train_dataset": "a", "data.val_dataset": "b"})


@pytest.mark.parametrize("loudness", [0.01, 30.0], ids=["not clipped", "clipped"])
def test_lamb_trains_as_timms(loudness: float) -> None:
    """With timm's defaults: bias corrected, gradients averaged and clipped to 1, what does not decay not adapted."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(640, 7))
    theirs = copy.deepcopy(ours)
    settings = OptimizerConfig(clip_norm=1)
    optimizer = build_optimizer("lamb", parameter_groups(ours, 0.02), settings, momentum=0.9, peak_lr=0.05)
    reference = Lamb(
        parameter_groups(theirs, 0.02), lr=0.05, betas=(settings.lamb_beta1, settings.lamb_beta2), eps=1e-6
    )
    scaler = gradient_scaler("32", torch.device("cpu"))
    assert settings.lamb_eps == 1e-6
    norms = []
    for rate in (0.001, 0.02, 0.05, 0.03, 0.01, 0.002):
        for model, stepped in ((ours, optimizer), (theirs, reference)):
            set_learning_rate(stepped, rate)
            stepped.zero_grad()
            (loudness * nn.functional.cross_entropy(model(IMAGES), LABELS)).backward()
            if model is ours:
                norms.append(torch.nn.utils.get_total_norm([p.grad for p in ours.parameters() if p.grad is not None]))
                clip_gradients(ours, optimizer, scaler, settings.clip_norm)
            stepped.step()
    assert all(norm > 1 for norm in norms) or all(norm < 1 for norm in norms)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.15])
def test_bce_is_timms_summed_over_classes(share: float, smoothing: float, threshold: float | None) -> None:
    criterion = build_criterion(LossConfig(loss_type="bce", bce_threshold=threshold), label_smoothing=smoothing)
    reference = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold, sum_classes=True)
    if share == 1:
        assert criterion(LOGITS, LABELS) == pytest.approx(reference(LOGITS, LABELS).item(), rel=1e-6)
    ours, theirs = (LOGITS.clone().requires_grad_() for _ in range(2))
    criterion(ours, mixup_target(LABELS, 7, share)).backward()
    reference(theirs, mixup_target(LABELS, 7, share, smoothing)).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_mixup_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "beta", lambda *_: 0.3)
    expected, expected_targets = Mixup(0.2, label_smoothing=0, num_classes=7)(IMAGES.clone(), LABELS)
    mixed, targets = mixup(IMAGES, nn.functional.one_hot(LABELS, 7).float(), FLIPPED, 0.3)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(targets, expected_targets)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_is_timms(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    share = 0.1 + 0.1 * seed
    monkeypatch.setattr(np.random, "beta", lambda *_: share)
    timms = Mixup(0, 1, label_smoothing=0, num_classes=7)
    np.random.seed(seed)
    np.random.rand()  # whether to mix
    top, bottom, left, right = rand_bbox(IMAGES.shape, share)
    np.random.seed(seed)
    expected, expected_targets = timms(IMAGES.clone(), LABELS)
    box = (int(top), int(left), int(bottom), int(right))
    mixed, targets = cutmix(IMAGES, nn.functional.one_hot(LABELS, 7).float(), FLIPPED, box)
    assert torch.equal(mixed, expected)
    torch.testing.assert_close(targets, expected_targets)

    np.random.seed(seed)
    np.random.rand()
    center_y, center_x = np.random.randint(0, 12), np.random.randint(0, 10)
    ours = cut_box(12, 10, share, (center_y + 0.5) / 12, (center_x + 0.5) / 10)
    assert np.abs(np.subtract(ours, box)).max() <= 1  # timm rounds the side, torchvision half of it


@pytest.mark.parametrize(("name", "asked"), [("rsb_a1", "m7"), ("rsb_a2", "m7"), ("rsb_a3", "m6")])
def test_randaugments_strength_noise_and_probability_are_timms(name: str, asked: str) -> None:
    settings = recipe(name).regularization
    policy = rand_augment_transform(f"rand-{asked}-mstd0.5-inc1", {})
    operation: AugmentOp = policy.ops[0]
    assert policy.num_layers == settings.randaugment_ops

    theirs: list[float] = []  # of 10, ours are of 30
    operation.level_fn = lambda magnitude, _: (theirs.append(3 * magnitude),)
    operation.aug_fn = lambda image, *_, **__: image
    random.seed(0)
    for _ in range(8000):
        operation(None)
    position = BatchPosition(seed=0, step=0, first=0, count=8000)
    applied = _applied(position, 1, settings.randaugment_probability)
    ours = _drawn_magnitudes(position, 1, settings.randaugment_magnitude, settings.randaugment_noise)
    assert applied.mean() == pytest.approx(len(theirs) / 8000, abs=0.03)
    assert ours.mean() == pytest.approx(np.mean(theirs), abs=0.1)
    assert ours.std() == pytest.approx((np.var(theirs) + 1 / 12) ** 0.5, rel=0.05)  # ours are whole


@pytest.mark.parametrize("name", ["rsb_a1", "rsb_a2", "rsb_a3"])
def test_the_learning_rate_warms_up_as_timms_and_falls_from_there(name: str) -> None:
    config = recipe(name)
    lr: LearningRateConfig = config.lr
    peak, epochs = peak_lr(lr, global_batch=2048), config.training.epochs
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=epochs - 5, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4, warmup_prefix=True
    )
    for epoch in range(epochs):
        (expected,) = scheduler._get_lr(epoch)
        assert lr_at(epoch, lr, epochs=epochs, steps_per_epoch=1, peak=peak) == pytest.approx(expected, rel=1e-9)
