"""Which techniques a run uses, and their order: pixels, normalisation, erasing, mixing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from rebar.augment.color import color_jitter
from rebar.augment.erasing import erase, erasing_boxes
from rebar.augment.mixing import Mixing
from rebar.augment.operations import rand_augment, trivial_augment
from rebar.augment.rng import BatchPosition
from rebar.config import option

STRONG_ERASING = 0.1


@dataclass(frozen=True)
class RegularizationConfig:
    """Regularization and augmentation."""

    augmentation: Literal["none", "basic", "strong"] = option(
        "basic", help="none: centre crops; basic: random crops, mirrored; strong: TrivialAugment and erasing too"
    )
    repeated_augmentation: int = option(
        1, help="crops of each image in a batch; an epoch then visits one in so many of the images", minimum=1
    )
    use_mixup: bool = option(False, help="blend images and labels in pairs")
    mixup_alpha: float = option(0.2, help="MixUp: larger blends more evenly", minimum=0.001)
    use_cutmix: bool = option(False, help="put a rectangle of another image into each; with MixUp: one or the other")
    cutmix_alpha: float = option(1.0, help="CutMix: 1 draws every share of the area alike", minimum=0.001)
    mix_probability: float = option(1.0, help="share of the batches that MixUp or CutMix get", minimum=0, maximum=1)
    cutmix_share: float = option(0.5, help="MixUp and CutMix: share of CutMix", minimum=0, maximum=1)
    use_randaugment: bool = option(False, help="random operations of one strength on every image")
    randaugment_ops: int = option(2, help="RandAugment: operations an image", minimum=1)
    randaugment_magnitude: int = option(9, help="RandAugment: strength", minimum=0, maximum=30)
    randaugment_probability: float = option(
        1.0, help="RandAugment: how likely each operation is applied", minimum=0, maximum=1
    )
    randaugment_noise: float = option(0.0, help="RandAugment: standard deviation of the strength", minimum=0)
    use_trivialaugment: bool = option(False, help="one random operation of random strength on every image")
    color_jitter: float = option(0.0, help="largest change of brightness, contrast, saturation", minimum=0)
    color_jitter_hue: float = option(0.0, help="largest turn of the hue", minimum=0, maximum=0.5)
    random_erasing: float = option(0.0, help="probability of a rectangle set to the mean colour", minimum=0, maximum=1)
    stochastic_depth: float = option(
        0.0, help="share of a batch that skips the last residual block; less for earlier ones", minimum=0, maximum=0.99
    )

    def conditions(self) -> Mapping[str, tuple[str, bool]]:
        """What each setting depends on to have an effect, and whether that is on."""
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


@dataclass(frozen=True)
class Regularizer:
    """Augments the batches of one process; see :class:`BatchPosition` for what that depends on."""

    config: RegularizationConfig
    mixing: Mixing
    seed: int
    rank: int

    def augment(self, images: torch.Tensor, step: int) -> torch.Tensor:
        """Change uint8 ``[n, 3, h, w]`` images, before they are normalised."""
        config, position = self.config, self._position(step, len(images))
        if config.use_randaugment:
            images = rand_augment(
                images,
                position,
                num_ops=config.randaugment_ops,
                magnitude=config.randaugment_magnitude,
                probability=config.randaugment_probability,
                noise=config.randaugment_noise,
            )
        if config.use_trivialaugment or (config.augmentation == "strong" and not config.use_randaugment):
            images = trivial_augment(images, position)
        if config.color_jitter > 0 or config.color_jitter_hue > 0:
            images = color_jitter(images, position, strength=config.color_jitter, hue=config.color_jitter_hue)
        return images

    def mix(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Erase and mix normalised float ``[n, 3, h, w]`` images; returns them and their targets.

        Targets are the labels, or probabilities ``[n, classes]`` where MixUp or CutMix is on.
        """
        position = self._position(step, len(images))
        probability = self.config.random_erasing
        if probability == 0 and self.config.augmentation == "strong":
            probability = STRONG_ERASING
        if probability > 0:
            images = erase(images, erasing_boxes(position, *images.shape[2:], probability=probability))
        return self.mixing(images, labels, position)

    def _position(self, step: int, count: int) -> BatchPosition:
        return BatchPosition(self.seed, step, first=self.rank * count, count=count)


def build_regularizer(config: RegularizationConfig, *, num_classes: int, seed: int, rank: int) -> Regularizer:
    """The techniques that a configuration asks for."""
    mixing = Mixing(
        num_classes,
        mixup_alpha=config.mixup_alpha if config.use_mixup else 0.0,
        cutmix_alpha=config.cutmix_alpha if config.use_cutmix else 0.0,
        probability=config.mix_probability,
        cutmix_share=config.cutmix_share,
    )
    return Regularizer(config, mixing, seed, rank)
