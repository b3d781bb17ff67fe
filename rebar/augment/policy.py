"""The augmentation policy of a run: its options, and the order in which the techniques are applied.

To add a technique, write it in a module of this package as a function of the images and their BatchPosition, with an
early return if it is disabled. Declare its options in RegularizationConfig, add one line to IMAGE_OPERATIONS or
NORMALIZED_OPERATIONS, and add a test to tests/augment. Draw its random numbers from a new rebar.loading.rng.Stream.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from rebar.augment.mixing import Mixing, erase, erasing_boxes
from rebar.augment.operations import rand_augment, trivial_augment
from rebar.augment.rng import BatchPosition
from rebar.augment.transforms import color_jitter
from rebar.config import option

STRONG_ERASING = 0.1
"""The probability of random erasing with ``augmentation: strong``."""


@dataclass(frozen=True)
class RegularizationConfig:
    """Regularization and augmentation."""

    augmentation: Literal["none", "basic", "strong"] = option(
        "basic",
        help="none: center crops; basic: random crops and flips; strong: also TrivialAugment and random erasing",
    )
    repeated_augmentation: int = option(
        1, help="crops of each image per batch; an epoch then visits 1/N of the images", minimum=1
    )
    use_mixup: bool = option(False, help="MixUp: blend pairs of images and their labels")
    mixup_alpha: float = option(
        0.2, help="MixUp: parameter of the Beta distribution; implies use_mixup, 0 disables it", minimum=0
    )
    use_cutmix: bool = option(
        False, help="CutMix: paste a box from another image; with MixUp, one of the two is chosen per batch"
    )
    cutmix_alpha: float = option(
        1.0, help="CutMix: parameter of the Beta distribution; implies use_cutmix, 0 disables it", minimum=0
    )
    mix_probability: float = option(
        1.0, help="probability that MixUp or CutMix is applied to a batch", minimum=0, maximum=1
    )
    cutmix_share: float = option(0.5, help="with MixUp and CutMix: probability of CutMix", minimum=0, maximum=1)
    use_randaugment: bool = option(False, help="RandAugment: random operations of fixed magnitude on every image")
    randaugment_ops: int = option(2, help="RandAugment: operations per image", minimum=1)
    randaugment_magnitude: int = option(9, help="RandAugment: magnitude", minimum=0, maximum=30)
    randaugment_probability: float = option(
        1.0, help="RandAugment: probability of applying each operation", minimum=0, maximum=1
    )
    randaugment_noise: float = option(0.0, help="RandAugment: standard deviation of the magnitude", minimum=0)
    use_trivialaugment: bool = option(False, help="TrivialAugment: one random operation of random magnitude per image")
    color_jitter: float = option(
        0.0, help="ColorJitter: largest relative change of brightness, contrast and saturation", minimum=0
    )
    color_jitter_hue: float = option(0.0, help="ColorJitter: largest hue shift, in turns", minimum=0, maximum=0.5)
    random_erasing: float = option(0.0, help="random erasing: probability per image", minimum=0, maximum=1)
    stochastic_depth: float = option(
        0.0,
        help="stochastic depth: drop probability of the last residual block; it decreases linearly to the first block",
        minimum=0,
        maximum=0.99,
    )

    def conditions(self) -> Mapping[str, tuple[str, bool]]:
        """Return, by option, the condition under which it has an effect, and whether that condition is met."""
        both = self.use_mixup and self.use_cutmix
        return {
            "mixup_alpha": ("use_mixup", self.use_mixup),
            "cutmix_alpha": ("use_cutmix", self.use_cutmix),
            "mix_probability": ("use_mixup or use_cutmix", self.use_mixup or self.use_cutmix),
            "cutmix_share": ("both use_mixup and use_cutmix", both),
            "randaugment_ops": ("use_randaugment", self.use_randaugment),
            "randaugment_magnitude": ("use_randaugment", self.use_randaugment),
            "randaugment_probability": ("use_randaugment", self.use_randaugment),
            "randaugment_noise": ("use_randaugment", self.use_randaugment),
        }


Operation = Callable[[torch.Tensor, RegularizationConfig, BatchPosition], torch.Tensor]
"""Augments the images of a batch, or returns them unchanged if the configuration disables it."""


def _rand_augment(images: torch.Tensor, config: RegularizationConfig, position: BatchPosition) -> torch.Tensor:
    if not config.use_randaugment:
        return images
    return rand_augment(
        images,
        position,
        num_ops=config.randaugment_ops,
        magnitude=config.randaugment_magnitude,
        probability=config.randaugment_probability,
        noise=config.randaugment_noise,
    )


def _trivial_augment(images: torch.Tensor, config: RegularizationConfig, position: BatchPosition) -> torch.Tensor:
    by_policy = config.augmentation == "strong" and not config.use_randaugment
    return trivial_augment(images, position) if config.use_trivialaugment or by_policy else images


def _color_jitter(images: torch.Tensor, config: RegularizationConfig, position: BatchPosition) -> torch.Tensor:
    if config.color_jitter == 0 and config.color_jitter_hue == 0:
        return images
    return color_jitter(images, position, strength=config.color_jitter, hue=config.color_jitter_hue)


def _random_erasing(images: torch.Tensor, config: RegularizationConfig, position: BatchPosition) -> torch.Tensor:
    probability = config.random_erasing or (STRONG_ERASING if config.augmentation == "strong" else 0.0)
    if probability == 0:
        return images
    return erase(images, erasing_boxes(position, *images.shape[2:], probability=probability))


IMAGE_OPERATIONS: dict[str, Operation] = {
    "RandAugment": _rand_augment,
    "TrivialAugment": _trivial_augment,
    "ColorJitter": _color_jitter,
}
"""Applied in this order to uint8 ``[n, 3, h, w]`` images before normalization."""
NORMALIZED_OPERATIONS: dict[str, Operation] = {
    "RandomErasing": _random_erasing,
}
"""Applied in this order to float ``[n, 3, h, w]`` images after normalization; MixUp and CutMix follow."""


@dataclass(frozen=True)
class Regularizer:
    """Augments the batches of one rank. All draws are functions of the batch's :class:`BatchPosition`."""

    config: RegularizationConfig
    mixing: Mixing
    seed: int
    rank: int

    def augment(self, images: torch.Tensor, step: int) -> torch.Tensor:
        """Augment uint8 ``[n, 3, h, w]`` images before normalization."""
        position = self._position(step, len(images))
        for operation in IMAGE_OPERATIONS.values():
            images = operation(images, self.config, position)
        return images

    def mix(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Erase and mix normalized float ``[n, 3, h, w]`` images, in place where possible; return images and targets.

        Targets are the labels, or probabilities ``[n, classes]`` with MixUp or CutMix.
        """
        position = self._position(step, len(images))
        for operation in NORMALIZED_OPERATIONS.values():
            images = operation(images, self.config, position)
        return self.mixing(images, labels, position)

    def _position(self, step: int, count: int) -> BatchPosition:
        return BatchPosition(self.seed, step, first=self.rank * count, count=count)


def build_regularizer(config: RegularizationConfig, *, num_classes: int, seed: int, rank: int) -> Regularizer:
    """Return the regularizer of a rank for a configuration."""
    return Regularizer(config, _mixing(config, num_classes), seed, rank)


def mix_weight(config: RegularizationConfig, *, seed: int, step: int) -> float | None:
    """Return the weight of each image in the mixture of a step, 1 if it is not mixed; None without MixUp and CutMix."""
    mixing = _mixing(config, num_classes=1)
    drawn = mixing.draw(BatchPosition(seed, step, first=0, count=1))
    return (1.0 if drawn is None else drawn.lam) if mixing.enabled else None


def _mixing(config: RegularizationConfig, num_classes: int) -> Mixing:
    return Mixing(
        num_classes,
        mixup_alpha=config.mixup_alpha if config.use_mixup else 0.0,
        cutmix_alpha=config.cutmix_alpha if config.use_cutmix else 0.0,
        probability=config.mix_probability,
        cutmix_share=config.cutmix_share,
    )
