"""The components of "ResNet strikes back" compared with timm's: LAMB, BCE, Mixup, CutMix, RandAugment, cosine decay."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rebar.augment.mixing import cut_box, cutmix, mixup
from rebar.augment.operations import draw_magnitudes, operation_mask
from rebar.config import build_config, load_config_files
from rebar.loading.rng import BatchPosition
from rebar.optim.optimizers import build_optimizer, clip_gradients, parameter_groups, set_learning_rate
from rebar.optim.options import OptimizerConfig
from rebar.optim.schedules import LearningRateConfig, build_base_schedule, peak_lr
from rebar.training.config import TrainConfig
from rebar.training.execution import gradient_scaler
from rebar.training.losses import build_criterion
from rebar.training.options import LossConfig

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
FLIPPED = torch.arange(6).flip(0)  # timm mixes each sample with its mirror position in the batch


def recipe(name: str) -> TrainConfig:
    values = load_config_files([CONFIGS / f"{name}.yaml"])
    return build_config(TrainConfig, {**values, "data.train_dataset": "a", "data.val_dataset": "b"})


@pytest.mark.parametrize("loss_scale", [0.01, 30.0], ids=["unclipped", "clipped"])
def test_lamb_equals_timm(loss_scale: float) -> None:
    """With timm's defaults: bias correction, gradients clipped to 1, no trust ratio without weight decay."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(640, 7))
    theirs = copy.deepcopy(ours)
    config = OptimizerConfig(clip_norm=1)
    optimizer = build_optimizer("lamb", parameter_groups(ours, 0.02), config, momentum=0.9, peak_lr=0.05)
    reference = Lamb(parameter_groups(theirs, 0.02), lr=0.05, betas=(config.lamb_beta1, config.lamb_beta2), eps=1e-6)
    scaler = gradient_scaler("32", torch.device("cpu"))
    assert config.lamb_eps == 1e-6
    norms = []
    for rate in (0.001, 0.02, 0.05, 0.03, 0.01, 0.002):
        for model, stepped in ((ours, optimizer), (theirs, reference)):
            set_learning_rate(stepped, rate)
            stepped.zero_grad()
            (loss_scale * nn.functional.cross_entropy(model(IMAGES), LABELS)).backward()
            if model is ours:
                norms.append(torch.nn.utils.get_total_norm([p.grad for p in ours.parameters() if p.grad is not None]))
                clip_gradients(ours, optimizer, scaler, config.clip_norm)
            stepped.step()
    assert all(norm > 1 for norm in norms) or all(norm < 1 for norm in norms)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.15])
def test_bce_equals_timm_summed_over_classes(share: float, smoothing: float, threshold: float | None) -> None:
    criterion = build_criterion(LossConfig(loss_type="bce", bce_threshold=threshold), label_smoothing=smoothing)
    reference = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold, sum_classes=True)
    if share == 1:
        assert criterion(LOGITS, LABELS) == pytest.approx(reference(LOGITS, LABELS).item(), rel=1e-6)
    ours, theirs = (LOGITS.clone().requires_grad_() for _ in range(2))
    criterion(ours, mixup_target(LABELS, 7, share)).backward()
    reference(theirs, mixup_target(LABELS, 7, share, smoothing)).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_mixup_equals_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "beta", lambda *_: 0.3)
    expected, expected_targets = Mixup(0.2, label_smoothing=0, num_classes=7)(IMAGES.clone(), LABELS)
    mixed, targets = mixup(IMAGES, nn.functional.one_hot(LABELS, 7).float(), FLIPPED, 0.3)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(targets, expected_targets)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_equals_timm(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    share = 0.1 + 0.1 * seed
    monkeypatch.setattr(np.random, "beta", lambda *_: share)
    timms = Mixup(0, 1, label_smoothing=0, num_classes=7)
    np.random.seed(seed)
    np.random.rand()  # timm's draw of whether to mix
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
    assert np.abs(np.subtract(ours, box)).max() <= 1  # timm rounds the side, torchvision rounds half of it


@pytest.mark.parametrize(("name", "timm_magnitude"), [("rsb_a1", "m7"), ("rsb_a2", "m7"), ("rsb_a3", "m6")])
def test_randaugment_magnitudes_and_probability_equal_timm(name: str, timm_magnitude: str) -> None:
    options = recipe(name).regularization
    policy = rand_augment_transform(f"rand-{timm_magnitude}-mstd0.5-inc1", {})
    operation: AugmentOp = policy.ops[0]
    assert policy.num_layers == options.randaugment_ops

    theirs: list[float] = []  # timm's scale is 0 to 10, ours 0 to 30
    operation.level_fn = lambda magnitude, _: (theirs.append(3 * magnitude),)
    operation.aug_fn = lambda image, *_, **__: image
    random.seed(0)
    for _ in range(8000):
        operation(None)
    position = BatchPosition(seed=0, step=0, first=0, count=8000)
    applied = operation_mask(position, 1, options.randaugment_probability)
    ours = draw_magnitudes(position, 1, options.randaugment_magnitude, options.randaugment_noise)
    assert applied.mean() == pytest.approx(len(theirs) / 8000, abs=0.03)
    assert ours.mean() == pytest.approx(np.mean(theirs), abs=0.1)
    assert ours.std() == pytest.approx((np.var(theirs) + 1 / 12) ** 0.5, rel=0.05)  # ours are rounded to integers


@pytest.mark.parametrize("name", ["rsb_a1", "rsb_a2", "rsb_a3"])
def test_warmup_and_cosine_decay_equal_timm(name: str) -> None:
    config = recipe(name)
    lr: LearningRateConfig = config.lr
    peak, epochs = peak_lr(lr, global_batch=2048), config.training.epochs
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=epochs - 5, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4, warmup_prefix=True
    )
    rate = build_base_schedule(lr, epochs=epochs, steps_per_epoch=1, peak=peak)
    for epoch in range(epochs):
        scheduler.step(epoch)
        assert rate(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
