"""Exact accuracy, against a plain computation image by image."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from rebar.errors import RebarError
from rebar.training.distributed import World
from rebar.training.evaluate import Evaluation, ValidationConfig, evaluate, named_by_resolution

Batches = list[tuple[torch.Tensor, torch.Tensor]]


class Scorer(nn.Module):
    """Its logits are a row of pixels, so that a test writes them into the images; mirrored, another row."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert len(images) > 0, "an empty batch needs no model"
        return images[:, :, 0, 0]


def make_batches(sizes: Sequence[int], num_classes: int) -> Batches:
    """Images of one row of two pixels: the first is the image's logits, the last the mirrored one's."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, num_classes, 1, 2, generator=generator),
            torch.randint(num_classes, (size,), generator=generator),
        )
        for size in sizes
    ]


def rank_of_label(scores: list[float], label: int) -> int:
    """0 where the label has the highest score."""
    return sorted(range(len(scores)), key=lambda k: -scores[k]).index(label)


def plainly(batches: Batches) -> Evaluation:
    """One image after the other, without torch."""
    losses, ranks, ranks_tta = [], [], []
    for images, labels in batches:
        for image, label in zip(images.tolist(), labels.tolist(), strict=True):
            scores = [row[0][0] for row in image]
            both = [row[0][0] + row[0][1] for row in image]
            losses.append(math.log(sum(map(math.exp, scores))) - scores[label])
            ranks.append(rank_of_label(scores, label))
            ranks_tta.append(rank_of_label(both, label))
    count = len(losses)
    shares = [sum(rank < k for rank in found) / count for found in (ranks, ranks_tta) for k in (1, 5)]
    return Evaluation(count, sum(losses) / count, *shares)


@pytest.mark.parametrize(
    ("sizes", "num_classes"),
    [([8, 8, 8], 10), ([64, 1], 10), ([7, 0, 3, 0], 20), ([9], 5), ([9, 2], 3), ([4], 1)],
)
def test_counts_are_exact(sizes: list[int], num_classes: int, world: World) -> None:
    batches = make_batches(sizes, num_classes)
    result, expected = evaluate(Scorer(), batches, world=world, precision="32", mirror=True), plainly(batches)
    assert result.num_samples == expected.num_samples == sum(sizes)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (result.top1, result.top5) == (expected.top1, expected.top5)
    assert (result.top1_tta, result.top5_tta) == (expected.top1_tta, expected.top5_tta)


def test_mirroring_matters_and_can_be_left_out(world: World) -> None:
    batches = make_batches([50], 10)
    without = evaluate(Scorer(), batches, world=world, precision="32", mirror=False)
    assert (without.top1_tta, without.top5_tta) == (None, None)
    assert without.metrics().keys() == {"val/loss", "val/top1", "val/top5"}
    mirrored = evaluate(Scorer(), batches, world=world, precision="32", mirror=True)
    assert mirrored.top1 == without.top1
    assert mirrored.top1_tta != mirrored.top1
    assert mirrored.metrics().keys() >= {"val/top1_tta", "val/top5_tta"}


def test_how_the_images_are_batched_does_not_matter(world: World) -> None:
    ((images, labels),) = make_batches([30], 10)
    uneven = [(images[a:b], labels[a:b]) for a, b in [(0, 20), (20, 20), (20, 29), (29, 30)]]
    results = [evaluate(Scorer(), b, world=world, precision="32", mirror=True) for b in ([(images, labels)], uneven)]
    assert results[0].metrics() == pytest.approx(results[1].metrics(), rel=1e-6)


def test_the_model_evaluates_and_learns_nothing(world: World) -> None:
    model = nn.Sequential(nn.BatchNorm2d(10), nn.Dropout(0.5), Scorer())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = [evaluate(model, make_batches([16], 10), world=world, precision="32", mirror=False) for _ in range(2)]
    assert results[0] == results[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_results_are_named_by_their_resolution() -> None:
    metrics = {"train/loss": 2.0, "val/top1": 0.5, "val/top1_tta": 0.6, "val/top1_224px": 0.4}
    assert named_by_resolution(metrics, 256) == {"val/top1_256px": 0.5, "val/top1_tta_256px": 0.6}


def test_the_resolutions_at_the_end() -> None:
    assert ValidationConfig().at_the_end == ()
    assert ValidationConfig(final_resolutions="224, 256,224").at_the_end == (224, 256)
    for wrong in ("224,big", "0", "-224", "22.4"):
        with pytest.raises(RebarError, match=r"final_resolutions: '.*' is no number of pixels"):
            ValidationConfig(final_resolutions=wrong)
