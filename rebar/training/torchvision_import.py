"""Import torchvision, also where its compiled operators do not fit the installed torch.

A torchvision built for CUDA beside a CPU-only torch cannot load its operators, and then the import
itself fails, because it describes two of them to torch before looking whether they exist. The models
need none of them. Declaring the two lets the import pass; where torch and torchvision are of one build
nothing is done.
"""

import sys
from types import ModuleType

import torch

_DECLARATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[torch.library.Library] = []  # a declaration lives as long as its Library


def import_torchvision() -> ModuleType:
    """The torchvision module, with ``torchvision.models`` loaded."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        _kept.append(library)
        for declaration in _DECLARATIONS:
            library.define(declaration)
        import torchvision
    return torchvision
