"""The options of the data, and progressive resizing. Imports no torch, so that the command line is read at once.

Progressive resizing: Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019, and Howard's fast.ai
entries to DAWNBench, 2018; the ramp is ffcv-imagenet's.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from rebar.config import option
from rebar.errors import RebarError

OnError = Literal["raise", "replace"]
IMAGENET_ON_HUB = "hf:imagenet-1k"
SUBSET_HELP = (
    "class-balanced subset: tiny (1,000 images), small (10,000), medium (100,000), large (500,000), full, or a number "
    "of images"
)

IMAGE_KEY_HELP = "of WebDataset samples with several images: extension of the one to use, such as jpg or depth.png"


@dataclass(frozen=True)
class DataConfig:
    """Data."""

    train_dataset: str = option(
        "",
        help="training .beton, or a source (folder, tar, hf:NAME, s3://...); default $WRITE_DIR/train.beton",
        metavar="PATH",
    )
    val_dataset: str = option("", help="validation .beton, or a source; default $WRITE_DIR/val.beton", metavar="PATH")
    use_hf: bool = option(False, help="use hf:imagenet-1k if no dataset is given")
    data_subset: str = option("full", help=SUBSET_HELP, metavar="SIZE")
    max_classes: int = option(0, help="of a source: number of classes, drawn at random; 0: all", minimum=0)
    max_samples_per_class: int = option(0, help="of a source: maximum number of images per class; 0: all", minimum=0)
    image_key: str = option("", help=IMAGE_KEY_HELP, metavar="EXT")
    num_workers: int = option(0, help="decoding threads per rank; 0: usable cores / ranks on the node", minimum=0)
    in_memory: Literal["auto", "true", "false"] = option(
        "auto",
        const="true",
        help="true: read the betons into the page cache; false: shuffle in windows of 512 MB (QUASI_RANDOM), for disks "
        "that are slow at random reads; auto: fully shuffled, and in the page cache if they fit in memory",
    )
    min_scale: float = option(
        0.08, help="smallest area of a random crop, as a fraction of the image", minimum=0.001, maximum=1
    )
    stats_file: str = option("", help="JSON file with mean and std of the channels; default ImageNet's", metavar="FILE")
    on_error: OnError = option("raise", help="corrupt training image: raise an error, or replace it with another image")


@dataclass(frozen=True)
class ResolutionConfig:
    """Training resolution."""

    min_res: int = option(160, help="resolution up to start_ramp, pixels", minimum=1)
    max_res: int = option(160, help="resolution from end_ramp on, pixels", minimum=1)
    start_ramp: int = option(0, help="epoch at which the resolution starts to grow", minimum=0)
    end_ramp: int = option(0, help="epoch at which the resolution reaches max_res", minimum=0)
    round_to: int = option(32, help="during the ramp, round to a multiple of this, pixels", minimum=1)

    def __post_init__(self) -> None:
        if self.max_res < self.min_res:
            raise RebarError(
                f"resolution: max_res {self.max_res} is below min_res {self.min_res}. Change one of them.",
                code="config-conflict",
            )
        if self.end_ramp < self.start_ramp:
            raise RebarError(
                f"resolution: end_ramp {self.end_ramp} is before start_ramp {self.start_ramp}. Change one of them.",
                code="config-conflict",
            )

    def at(self, epoch: int) -> int:
        """Return the training resolution of an epoch, counted from 0, in pixels."""
        return resolution_at(epoch, **asdict(self))


def resolution_at(epoch: int, *, min_res: int, max_res: int, start_ramp: int, end_ramp: int, round_to: int) -> int:
    """Interpolate linearly from ``min_res`` at epoch ``start_ramp`` to ``max_res`` at ``end_ramp``, in pixels."""
    if epoch <= start_ramp:
        return min_res
    if epoch >= end_ramp:
        return max_res
    exact = min_res + (epoch - start_ramp) / (end_ramp - start_ramp) * (max_res - min_res)
    # round() rounds halves to even, like numpy.round in ffcv-imagenet
    return max(round(exact / round_to), 1) * round_to


def all_resolutions(epochs: int, config: ResolutionConfig) -> list[int]:
    """Return the training resolution of each epoch, in pixels."""
    return [config.at(epoch) for epoch in range(epochs)]
