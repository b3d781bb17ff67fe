"""Import torchvision even if its compiled operators do not match the installed torch.

A torchvision built for CUDA cannot load its operators next to a CPU-only torch. Its import then fails, because it
registers fake kernels for two operators that do not exist. The classification models need neither operator.
"""

import sys
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # an operator is unregistered when its Library is garbage collected


def import_torchvision() -> ModuleType:
    """Return the torchvision module, with ``torchvision.models`` loaded.

    Defines the schemas of the two missing operators, and imports again, only if the plain import fails because of them.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        _libraries.append(library)
        for schema in _SCHEMAS:
            library.define(schema)
        import torchvision
    return torchvision
