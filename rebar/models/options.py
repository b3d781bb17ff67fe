"""The options of the model. Imports no torch, so that the command line is read at once."""

from dataclasses import dataclass
from typing import Literal

from rebar.config import option

Initialization = Literal["torchvision", "composer"]
SYNONYMS = {f"resnet{depth}-pytorch": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}
"""Names that other programs use for torchvision's ResNets."""


@dataclass(frozen=True)
class ModelConfig:
    """Model."""

    arch: str = option(
        "resnet18",
        help="torchvision classifier, e.g. resnet50; for images of about 32 px, e.g. resnet20; or your own as "
        "module:callable, which is called with the number of classes",
        synonyms=SYNONYMS,
    )
    pretrained: bool = option(False, help="start from torchvision's pretrained weights")
    zero_init_residual: bool = option(
        False,
        help="start each residual block as the identity: initialize its last BatchNorm weight to 0",
    )
    initialization: Initialization = option(
        "torchvision", help="weight initialization; composer: MosaicML's, with BatchNorm weights uniform in [0, 1)"
    )
    num_classes: int = option(0, help="outputs of the classifier; 0: classes of the dataset", minimum=0)
