"""The options of the data. Imports no torch, so that the command line is read at once."""

from dataclasses import dataclass
from typing import Literal

from rebar.config import option

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
