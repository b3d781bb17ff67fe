"""FFCV's .beton files: read, written and described. Stock FFCV reads what this writes, and the reverse.

What only writing needs (OpenCV, Pillow, the sources) is imported where it is asked for: a process that trains stays
small and starts quickly.
"""

import importlib
from typing import TYPE_CHECKING, Any

from rebar.beton.format import BetonError
from rebar.beton.reader import BetonFile
from rebar.beton.sidecar import Sidecar, read_sidecar

if TYPE_CHECKING:
    from rebar.beton.encode import ImagePolicy, OnBadImage
    from rebar.beton.source import Source
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

_FOR_WRITING = {
    "Estimate": "write_report",
    "ImagePolicy": "encode",
    "OnBadImage": "encode",
    "Source": "source",
    "Tally": "write_report",
    "WriteReport": "write_report",
    "write_beton": "writer",
}


def __getattr__(name: str) -> Any:
    if name in _FOR_WRITING:
        return getattr(importlib.import_module(f"{__name__}.{_FOR_WRITING[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
