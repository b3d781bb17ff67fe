"""What a batch becomes depends on the seed, the step and the place in the global batch, and on nothing else."""

import pytest
import torch

from rebar.augment.policy import RegularizationConfig, build_regularizer
from rebar.training.unused_options import unused_in_section

EVERYTHING = RegularizationConfig(
    use_mixup=True,
    use_cutmix=True,
    use_randaugment=True,
    use_trivialaugment=True,
    color_jitter=0.4,
    color_jitter_hue=0.1,
    random_erasing=0.5,
)


def result(
    images: torch.Tensor, *, step: int, seed: int = 0, rank: int = 0, config: RegularizationConfig = EVERYTHING
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both stages, as in the loop, with the labels 0, 1, 2, ..."""
    regularizer = build_regularizer(config, num_classes=24, seed=seed, rank=rank)
    changed = regularizer.augment(images, step).float() / 255 - 0.5
    first = rank * len(images)
    return regularizer.mix(changed, torch.arange(first, first + len(images)), step)


@pytest.mark.parametrize("step", range(3))
def test_any_number_of_processes_makes_the_same_global_batch(step: int, images: torch.Tensor) -> None:
    batch = images.repeat(4, 1, 1, 1)  # 24 samples
    whole, targets = result(batch, step=step)
    for world_size in (2, 3, 4):
        parts = [result(part, step=step, rank=rank) for rank, part in enumerate(batch.chunk(world_size))]
        assert torch.equal(torch.cat([part for part, _ in parts]), whole)
        assert torch.equal(torch.cat([part for _, part in parts]), targets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("step", range(4))
def test_a_gpu_makes_the_same_of_a_batch(step: int, images: torch.Tensor) -> None:
    batch = images.repeat(4, 1, 1, 1)
    regularizer = build_regularizer(EVERYTHING, num_classes=24, seed=0, rank=0)
    on_gpu, expected = (regularizer.augment(batch.to(device), step).cpu().int() for device in ("cuda", "cpu"))
    # rounded otherwise, a value may differ by a level, a hue by more, a pixel by the neighbour that is nearest
    assert ((on_gpu - expected).abs() > 2).float().mean() < 0.01


def test_again_is_the_same_and_another_step_or_seed_is_not(images: torch.Tensor) -> None:
    first, _ = result(images, step=8)
    torch.rand(3)  # torch's own generator does not matter
    assert torch.equal(first, result(images, step=8)[0])
    assert not torch.equal(first, result(images, step=9)[0])
    assert not torch.equal(first, result(images, step=8, seed=1)[0])


def test_basic_changes_nothing_and_strong_does(images: torch.Tensor) -> None:
    plain = images.float() / 255 - 0.5
    basic, labels = result(images, step=0, config=RegularizationConfig())
    assert torch.equal(basic, plain)
    assert labels.dtype == torch.int64
    batch = images.repeat(10, 1, 1, 1)
    strong = build_regularizer(RegularizationConfig(augmentation="strong"), num_classes=9, seed=0, rank=0)
    trivial = build_regularizer(RegularizationConfig(use_trivialaugment=True), num_classes=9, seed=0, rank=0)
    assert torch.equal(strong.augment(batch, 3), trivial.augment(batch, 3))
    erased, _ = strong.mix(torch.ones(60, 3, 40, 32), torch.zeros(60, dtype=torch.int64), 3)
    assert 0 < (erased == 0).flatten(1).any(1).sum() < 20


def test_settings_that_change_nothing_are_named() -> None:
    config = RegularizationConfig(mixup_alpha=0.4, randaugment_ops=3, use_cutmix=True, cutmix_share=0.1)
    assert list(unused_in_section("regularization", config, config.conditions())) == [
        "regularization.mixup_alpha = 0.4 has no effect without use_mixup",
        "regularization.cutmix_share = 0.1 has no effect without both use_mixup and use_cutmix",
        "regularization.randaugment_ops = 3 has no effect without use_randaugment",
    ]
    assert list(unused_in_section("regularization", EVERYTHING, EVERYTHING.conditions())) == []
