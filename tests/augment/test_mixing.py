"""Random erasing, MixUp and CutMix equal torchvision's; Mixing selects between the last two as configured."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from rebar.augment.mixing import Mixing, cut_box, cutmix, erase, erasing_boxes, mixup, neighbors
from rebar.augment.options import RegularizationConfig
from rebar.augment.policy import mix_weight
from rebar.loading.rng import BatchPosition

LABELS = torch.tensor([0, 3, 1, 1, 4, 2])
TARGETS = F.one_hot(LABELS, 5).float()
ROLLED = torch.arange(6).roll(1)  # torchvision's partner is the previous sample


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_mixup_equals_torchvision(lam: float, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    transform = v2.MixUp(num_classes=5)
    monkeypatch.setattr(transform, "make_params", lambda _: {"lam": lam})
    expected, expected_targets = transform(images.float(), LABELS)
    mixed, targets = mixup(images.float(), TARGETS, ROLLED, lam)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(targets, expected_targets)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_equals_torchvision(seed: int, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    transform, lam = v2.CutMix(num_classes=5), 0.1 + 0.1 * seed
    monkeypatch.setattr(transform._dist, "sample", lambda *_: torch.tensor(lam, dtype=torch.float64))
    torch.manual_seed(seed)
    expected, expected_targets = transform(images.float(), LABELS)
    torch.manual_seed(seed)
    center_x, center_y = (int(torch.randint(side, size=(1,))) / side + 1e-9 for side in (32, 40))
    box = cut_box(40, 32, lam, center_y, center_x)
    mixed, targets = cutmix(images.float(), TARGETS, ROLLED, box)
    assert torch.equal(mixed, expected)
    torch.testing.assert_close(targets, expected_targets)


def techniques(mixing: Mixing, images: torch.Tensor, steps: int) -> list[str]:
    """Return the technique applied at each step, inferred from the result."""
    applied = []
    for step in range(steps):
        mixed, targets = mixing(images, LABELS, BatchPosition(0, step, 0, 6))
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        if torch.equal(mixed, images):
            applied.append("none")
        else:
            pasted = (mixed == images) | (mixed == images[neighbors(6, images.device)])
            applied.append("cutmix" if pasted.all() else "mixup")
    return applied


def test_mixing_selects_mixup_and_cutmix_with_their_probabilities(images: torch.Tensor) -> None:
    applied = techniques(
        Mixing(5, mixup_alpha=0.8, cutmix_alpha=1.0, probability=0.8, cutmix_share=0.25), images.float(), 600
    )
    counts = {name: applied.count(name) / 600 for name in ("none", "mixup", "cutmix")}
    assert counts == pytest.approx({"none": 0.2, "mixup": 0.6, "cutmix": 0.2}, abs=0.06)
    assert set(techniques(Mixing(5, mixup_alpha=0.8), images.float(), 20)) == {"mixup"}
    assert "mixup" not in techniques(Mixing(5, cutmix_alpha=1.0), images.float(), 20)


def test_mixup_lam_has_the_beta_distribution(images: torch.Tensor) -> None:
    mixing = Mixing(5, mixup_alpha=0.2)
    lams = [mixing(images.float(), LABELS, BatchPosition(0, step, 0, 6))[1][0, 0].item() for step in range(2000)]
    expected = np.random.default_rng(0).beta(0.2, 0.2, 100_000)
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(lams, level) == pytest.approx(np.quantile(expected, level), abs=0.05)


def test_mix_weight_is_that_of_the_batch(images: torch.Tensor) -> None:
    config = RegularizationConfig(use_mixup=True, mix_probability=0.5)
    mixing = Mixing(5, mixup_alpha=0.2, probability=0.5)
    for step in range(20):
        _, targets = mixing(images.float(), LABELS, BatchPosition(3, step, 6, 6))
        weight = mix_weight(config, seed=3, step=step)
        assert weight == pytest.approx(targets[0, 0].item(), abs=1e-6)
    assert mix_weight(RegularizationConfig(), seed=3, step=0) is None


def test_neighbors_are_pairs_and_the_last_of_an_odd_number_is_alone() -> None:
    assert neighbors(5, torch.device("cpu")).tolist() == [1, 0, 3, 2, 4]


def test_disabled_mixing_returns_images_and_labels_unchanged(images: torch.Tensor) -> None:
    same, labels = Mixing(5)(images, LABELS, BatchPosition(0, 0, 0, 6))
    assert same is images
    assert labels is LABELS


def test_erase_equals_torchvision(images: torch.Tensor) -> None:
    images = images.float()
    boxes = erasing_boxes(BatchPosition(0, 7, 0, 6), 40, 32, probability=0.7)
    erased = erase(images.clone(), boxes)
    assert 0 < (boxes[:, 2] > 0).sum() < 6
    for row, (top, left, height, width) in enumerate(boxes.tolist()):
        assert torch.equal(erased[row], v2.functional.erase(images[row], top, left, height, width, torch.zeros(1)))


def test_erase_preserves_the_channels_last_layout(images: torch.Tensor) -> None:
    images = images.float().contiguous(memory_format=torch.channels_last)
    erased = erase(images, erasing_boxes(BatchPosition(0, 7, 0, 6), 40, 32, probability=1.0))
    assert erased.is_contiguous(memory_format=torch.channels_last)


def test_erasing_boxes_have_torchvision_distribution() -> None:
    count = 20_000
    ours = erasing_boxes(BatchPosition(5, 1, 0, count), 60, 50, probability=0.25).astype(float)
    assert (ours[:, 0] + ours[:, 2]).max() <= 60
    assert (ours[:, 1] + ours[:, 3]).max() <= 50
    erased = ours[ours[:, 2] > 0]
    assert abs(len(erased) / count - 0.25) < 0.01

    torch.manual_seed(0)
    transform, image = v2.RandomErasing(p=1.0), torch.zeros(3, 60, 50)
    draws = [transform.make_params([image]) for _ in range(3_000)]
    theirs = np.array([[float(d[name]) for name in ("i", "j", "h", "w")] for d in draws])
    assert np.abs(erased.mean(0) - theirs.mean(0)).max() < 1.0
    assert np.abs(erased.std(0) - theirs.std(0)).max() < 1.0
