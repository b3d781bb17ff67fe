"""The policy applies the configured techniques as a function of (seed, step, position in the global batch)."""

import numpy as np
import pytest
import torch

from rebar.augment import policy
from rebar.augment.options import RegularizationConfig
from rebar.augment.policy import Technique, build_regularizer, describe_techniques
from rebar.training.config import unused_in_section

ALL_TECHNIQUES = RegularizationConfig(
    use_mixup=True,
    use_cutmix=True,
    use_randaugment=True,
    use_trivialaugment=True,
    color_jitter=0.4,
    color_jitter_hue=0.1,
    random_erasing=0.5,
)


def augment_and_mix(
    images: torch.Tensor, *, step: int, seed: int = 0, rank: int = 0, config: RegularizationConfig = ALL_TECHNIQUES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply both stages as the training loop does, with labels 0, 1, 2, ..."""
    regularizer = build_regularizer(config, num_classes=24, seed=seed, rank=rank)
    normalized = regularizer.augment(images, step).float() / 255 - 0.5
    first = rank * len(images)
    return regularizer.mix(normalized, torch.arange(first, first + len(images)), step)


@pytest.mark.parametrize("step", range(3))
def test_augmented_global_batch_does_not_depend_on_the_number_of_ranks(step: int, images: torch.Tensor) -> None:
    batch = images.repeat(4, 1, 1, 1)  # 24 samples
    expected, expected_targets = augment_and_mix(batch, step=step)
    for world_size in (2, 3, 4):
        parts = [augment_and_mix(part, step=step, rank=rank) for rank, part in enumerate(batch.chunk(world_size))]
        assert torch.equal(torch.cat([part for part, _ in parts]), expected)
        assert torch.equal(torch.cat([targets for _, targets in parts]), expected_targets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("step", range(4))
def test_augment_on_a_gpu_equals_the_cpu_up_to_rounding(step: int, images: torch.Tensor) -> None:
    batch = images.repeat(4, 1, 1, 1)
    regularizer = build_regularizer(ALL_TECHNIQUES, num_classes=24, seed=0, rank=0)
    on_gpu, expected = (regularizer.augment(batch.to(device), step).cpu().int() for device in ("cuda", "cpu"))
    # Rounding changes a value by one level, a hue by more, and the nearest neighbor of a few pixels.
    assert ((on_gpu - expected).abs() > 2).float().mean() < 0.01


def test_augmentation_is_reproducible_and_differs_between_steps_and_seeds(images: torch.Tensor) -> None:
    first, _ = augment_and_mix(images, step=8)
    torch.rand(3)  # torch's own generator has no effect
    assert torch.equal(first, augment_and_mix(images, step=8)[0])
    assert not torch.equal(first, augment_and_mix(images, step=9)[0])
    assert not torch.equal(first, augment_and_mix(images, step=8, seed=1)[0])


def test_basic_augmentation_leaves_the_batch_unchanged(images: torch.Tensor) -> None:
    basic, labels = augment_and_mix(images, step=0, config=RegularizationConfig())
    assert torch.equal(basic, images.float() / 255 - 0.5)
    assert labels.dtype == torch.int64


def test_strong_augmentation_is_trivialaugment_and_random_erasing(images: torch.Tensor) -> None:
    batch = images.repeat(10, 1, 1, 1)
    strong = build_regularizer(RegularizationConfig(augmentation="strong"), num_classes=9, seed=0, rank=0)
    trivial = build_regularizer(RegularizationConfig(use_trivialaugment=True), num_classes=9, seed=0, rank=0)
    assert torch.equal(strong.augment(batch, 3), trivial.augment(batch, 3))
    erased, _ = strong.mix(torch.ones(60, 3, 40, 32), torch.zeros(60, dtype=torch.int64), 3)
    assert 0 < (erased == 0).flatten(1).any(1).sum() < 20


def test_registered_operations_are_applied_to_images_and_to_normalized_images(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    invert = Technique(lambda images, config, position: 255 - images, lambda config: "inverted")
    negate = Technique(lambda images, config, position: -images, lambda config: "")
    monkeypatch.setitem(policy.IMAGE_OPERATIONS, "Invert", invert)
    monkeypatch.setitem(policy.NORMALIZED_OPERATIONS, "Negate", negate)
    changed, _ = augment_and_mix(images, step=0, config=RegularizationConfig())
    np.testing.assert_allclose(changed, images.float() / 255 - 0.5, atol=1e-6)
    assert describe_techniques(RegularizationConfig(random_erasing=0.1)) == ["inverted", "random erasing 0.1"]


def test_options_without_effect_are_reported() -> None:
    config = RegularizationConfig(mixup_alpha=0.4, randaugment_ops=3, use_cutmix=True, cutmix_share=0.1)
    found = list(unused_in_section("regularization", config, config.conditions()))
    assert [sentence.split(" ")[0] for sentence in found] == [
        "regularization.mixup_alpha",
        "regularization.cutmix_share",
        "regularization.randaugment_ops",
    ]
    assert list(unused_in_section("regularization", ALL_TECHNIQUES, ALL_TECHNIQUES.conditions())) == []
