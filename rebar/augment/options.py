"""The options of augmentation. Imports no torch, so that the command line is read at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rebar.config import option


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
