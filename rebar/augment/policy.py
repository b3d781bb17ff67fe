"""The augmentation policy of a run: its options, and the order in which the techniques are applied.

CONTRIBUTING.md shows how to add a technique: a module of this package, and one line in IMAGE_OPERATIONS or
NORMALIZED_OPERATIONS. Its options are in RegularizationConfig, which imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rebar.augment.mixing import Mixing, erase, erasing_boxes
from rebar.augment.operations import rand_augment, trivial_augment
from rebar.augment.options import RegularizationConfig
from rebar.augment.transforms import color_jitter
from rebar.loading.rng import BatchPosition

STRONG_ERASING = 0.1
"""The probability of random erasing with ``augmentation: strong``."""

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


@dataclass(frozen=True)
class Technique:
    """An operation, and its description in the banner, which is empty if the configuration disables it."""

    apply: Operation
    describe: Callable[[RegularizationConfig], str]


def option_and_value(name: str) -> Callable[[RegularizationConfig], str]:
    """Return the description of a technique by the option that enables it, such as 'random erasing 0.1'."""

    def describe(config: RegularizationConfig) -> str:
        value = getattr(config, name)
        return f"{name.replace('_', ' ')} {value:g}" if value else ""

    return describe


def _describe_color_jitter(config: RegularizationConfig) -> str:
    strength, hue = config.color_jitter, config.color_jitter_hue
    return ", ".join(
        text for text, value in ((f"color jitter {strength:g}", strength), (f"hue jitter {hue:g}", hue)) if value > 0
    )


IMAGE_OPERATIONS: dict[str, Technique] = {
    "RandAugment": Technique(_rand_augment, lambda config: "RandAugment" if config.use_randaugment else ""),
    "TrivialAugment": Technique(_trivial_augment, lambda config: "TrivialAugment" if config.use_trivialaugment else ""),
    "ColorJitter": Technique(_color_jitter, _describe_color_jitter),
}
"""Applied in this order to uint8 ``[n, 3, h, w]`` images before normalization."""
NORMALIZED_OPERATIONS: dict[str, Technique] = {
    "RandomErasing": Technique(_random_erasing, option_and_value("random_erasing")),
}
"""Applied in this order to float ``[n, 3, h, w]`` images after normalization; MixUp and CutMix follow."""


def describe_techniques(config: RegularizationConfig) -> list[str]:
    """Return the descriptions of all techniques that the configuration enables."""
    techniques = (*IMAGE_OPERATIONS.values(), *NORMALIZED_OPERATIONS.values())
    return [text for technique in techniques if (text := technique.describe(config))]


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
        for technique in IMAGE_OPERATIONS.values():
            images = technique.apply(images, self.config, position)
        return images

    def mix(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Erase and mix normalized float ``[n, 3, h, w]`` images, in place where possible; return images and targets.

        Targets are the labels, or probabilities ``[n, classes]`` with MixUp or CutMix.
        """
        position = self._position(step, len(images))
        for technique in NORMALIZED_OPERATIONS.values():
            images = technique.apply(images, self.config, position)
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
