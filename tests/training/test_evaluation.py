"""``evaluate``, compared with a computation in plain Python, image by image."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from rebar.errors import RebarError
from rebar.training.config import ValidationConfig
from rebar.training.distributed import World
from rebar.training.evaluation import Evaluation, add_resolution_suffix, evaluate

Batches = list[tuple[torch.Tensor, torch.Tensor]]


class Scorer(nn.Module):
    """A model whose logits are the first pixel of each channel, so that a test can write them into the images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert len(images) > 0, "called with an empty batch"
        return images[:, :, 0, 0]


def make_batches(sizes: Sequence[int], num_classes: int) -> Batches:
    """Return images of 1 x 2 pixels: the logits, and those of the flipped image."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, num_classes, 1, 2, generator=generator),
            torch.randint(num_classes, (size,), generator=generator),
        )
        for size in sizes
    ]


def rank_of_label(scores: list[float], label: int) -> int:
    """Return 0 if the label has the highest score."""
    return sorted(range(len(scores)), key=lambda k: -scores[k]).index(label)


def reference(batches: Batches) -> Evaluation:
    """Evaluate one image after the other, without torch."""
    losses, ranks, ranks_tta = [], [], []
    for images, labels in batches:
        for image, label in zip(images.tolist(), labels.tolist(), strict=True):
            scores = [row[0][0] for row in image]
            both = [row[0][0] + row[0][1] for row in image]
            losses.append(math.log(sum(map(math.exp, scores))) - scores[label])
            ranks.append(rank_of_label(scores, label))
            ranks_tta.append(rank_of_label(both, label))
    count = len(losses)
    fractions = [sum(rank < k for rank in found) / count for found in (ranks, ranks_tta) for k in (1, 5)]
    return Evaluation(count, sum(losses) / count, *fractions)


@pytest.mark.parametrize(
    ("sizes", "num_classes"),
    [([8, 8, 8], 10), ([64, 1], 10), ([7, 0, 3, 0], 20), ([9], 5), ([9, 2], 3), ([4], 1)],
)
def test_evaluate_counts_exactly(sizes: list[int], num_classes: int, world: World) -> None:
    batches = make_batches(sizes, num_classes)
    result, expected = evaluate(Scorer(), batches, world=world, precision="32", flip_tta=True), reference(batches)
    assert result.num_samples == expected.num_samples == sum(sizes)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (result.top1, result.top5) == (expected.top1, expected.top5)
    assert (result.top1_tta, result.top5_tta) == (expected.top1_tta, expected.top5_tta)


def test_evaluate_with_and_without_flip_tta(world: World) -> None:
    batches = make_batches([50], 10)
    without = evaluate(Scorer(), batches, world=world, precision="32", flip_tta=False)
    assert (without.top1_tta, without.top5_tta) == (None, None)
    assert without.metrics().keys() == {"val/loss", "val/top1", "val/top5"}
    with_tta = evaluate(Scorer(), batches, world=world, precision="32", flip_tta=True)
    assert with_tta.top1 == without.top1
    assert with_tta.top1_tta != with_tta.top1
    assert with_tta.metrics().keys() >= {"val/top1_tta", "val/top5_tta"}


def test_evaluate_does_not_depend_on_batches(world: World) -> None:
    ((images, labels),) = make_batches([30], 10)
    uneven = [(images[a:b], labels[a:b]) for a, b in [(0, 20), (20, 20), (20, 29), (29, 30)]]
    results = [evaluate(Scorer(), b, world=world, precision="32", flip_tta=True) for b in ([(images, labels)], uneven)]
    assert results[0].metrics() == pytest.approx(results[1].metrics(), rel=1e-6)


def test_evaluate_does_not_change_the_model(world: World) -> None:
    model = nn.Sequential(nn.BatchNorm2d(10), nn.Dropout(0.5), Scorer())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = [evaluate(model, make_batches([16], 10), world=world, precision="32", flip_tta=False) for _ in range(2)]
    assert results[0] == results[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_add_resolution_suffix() -> None:
    metrics = {"train/loss": 2.0, "val/top1": 0.5, "val/top1_tta": 0.6, "val/top1_224px": 0.4}
    assert add_resolution_suffix(metrics, 256) == {"val/top1_256px": 0.5, "val/top1_tta_256px": 0.6}


def test_final_resolutions_are_parsed_and_validated() -> None:
    assert ValidationConfig().final == ()
    assert ValidationConfig(final_resolutions="224, 256,224").final == (224, 256)
    for invalid in ("224,big", "0", "-224", "22.4"):
        with pytest.raises(RebarError) as caught:
            ValidationConfig(final_resolutions=invalid)
        assert caught.value.code == "config-invalid-value"
