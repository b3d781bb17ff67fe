"""Read and write FFCV's .beton files, compatible with stock FFCV in both directions.

Modules for writing, which need OpenCV and Pillow, are imported on first use, so that training processes stay small.
"""

import importlib
from typing import TYPE_CHECKING, Any

from rebar.beton.format import BetonError
from rebar.beton.reader import BetonFile
from rebar.beton.sidecar import Sidecar, read_sidecar

if TYPE_CHECKING:
    from rebar.beton.encode import ImagePolicy, OnBadImage
    from rebar.beton.images import Source
    from rebar.beton.write_report import Estimate, Tally, WriteReport
    from rebar.beton.writer import write_beton

__all__ = [
    "BetonError",
    "BetonFile",
    "Estimate",
    "ImagePolicy",
    "OnBadImage",
    "Sidecar",
    "Source",
    "Tally",
    "WriteReport",
    "read_sidecar",
    "write_beton",
]

_WRITING_MODULES = {
    "Estimate": "write_report",
    "ImagePolicy": "encode",
    "OnBadImage": "encode",
    "Source": "images",
    "Tally": "write_report",
    "WriteReport": "write_report",
    "write_beton": "writer",
}


def __getattr__(name: str) -> Any:
    if name in _WRITING_MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_WRITING_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
