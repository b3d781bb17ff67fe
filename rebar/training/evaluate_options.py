"""The options of ``evaluate.py``. Imports no torch, so that the command line is read at once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebar.config import option, parse_config, section
from rebar.errors import RebarError
from rebar.loading.options import IMAGE_KEY_HELP, SUBSET_HELP
from rebar.training.aliases import EVALUATE_ALIASES, format_table
from rebar.training.options import PRECISION_SYNONYMS, Precision
from rebar.training.translation import translate


@dataclass(frozen=True)
class EvaluateSection:
    """Evaluation."""

    checkpoint: str = option("", help="checkpoint file, or run folder: its last checkpoint", metavar="PATH")
    weights: str = option(
        "",
        help="instead of a Rebar checkpoint: .pth of torchvision, timm, ffcv-imagenet or Lightning, .safetensors, or "
        "'torchvision' (pretrained)",
        metavar="FILE",
    )
    arch: str = option("", help="architecture of --weights; default: that stored in the file, or resnet50")
    use_blurpool: bool = option(False, help="the model of --weights uses BlurPool")
    data: str = option(
        "",
        help=".beton or image source (folder, tar, hf:NAME, ...) to evaluate on; default: $WRITE_DIR/val.beton",
        metavar="PATH",
    )
    data_subset: str = option("full", help=SUBSET_HELP, metavar="SIZE")
    image_key: str = option("", help=IMAGE_KEY_HELP)
    resolution: int = option(0, help="resolution in px; 0: the validation resolution of the training run", minimum=0)
    both: bool = option(False, help="evaluate at 224 and at 256 px")
    crop_ratio: float = option(
        0, help="side of the center crop, relative to the shorter side; 0: as in the training run", minimum=0, maximum=1
    )
    batch_size: int = option(0, help="batch size per rank; 0: the validation batch size of the training run", minimum=0)
    num_workers: int = option(0, help="decoding threads per rank; 0: cores divided by ranks", minimum=0)
    precision: Precision = option(
        "auto", help="precision of the forward pass; auto: as in the training run", synonyms=PRECISION_SYNONYMS
    )
    per_class: bool = option(False, help="also print the accuracy of each class, lowest first")
    confusion: str = option("", help="also plot the confusion matrix to this .png", metavar="FILE")
    export: str = option(
        "", help="also export the weights to this .pth (torchvision), .safetensors or .onnx", metavar="FILE"
    )
    overwrite: bool = option(False, help="replace existing files of --confusion and --export")


@dataclass(frozen=True)
class EvaluateConfig:
    """The options of ``evaluate.py``."""

    evaluate: EvaluateSection = section(EvaluateSection)


def parse_command_line(argv: Sequence[str]) -> EvaluateSection:
    """Return the options of a command line."""
    return parse_config(
        EvaluateConfig,
        translate(argv, EVALUATE_ALIASES),
        description="Compute the exact top-1 and top-5 accuracy of a checkpoint on a dataset.",
        examples=[
            "python evaluate.py --checkpoint runs/g5_1gpu --data val.beton",
            "python evaluate.py --weights torchvision --arch resnet50 --data val.beton",
        ],
        aliases=format_table(EVALUATE_ALIASES, same_name=()),
    ).evaluate


def default_data() -> str:
    """Return the validation beton in $WRITE_DIR. Raises RebarError if the variable is not set."""
    if not (folder := os.environ.get("WRITE_DIR")):
        raise RebarError("--data: required. Pass a .beton or an image source, or set WRITE_DIR.", code="data-not-given")
    return str(Path(folder) / "val.beton")
