"""The kernels that Python calls, each as a function of its arguments' descriptors (:mod:`rebar.jpeg.kernel_cache`).

Imported only where they are compiled (:mod:`rebar.jpeg.kernel_cache`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, types

from rebar.jpeg.kernel_cache import FIELDS, prototype
from rebar.jpeg.kernels.crops import decode_crops
from rebar.jpeg.kernels.simd import pointer
from rebar.jpeg.kernels.transcode import read_header, transcode
from rebar.jpeg.transcode_workspace import new_transcoding


def entries() -> dict[str, Callable[[Any], None]]:
    """By name."""
    transcoding = (new_transcoding(1, 1),)
    return {
        "decode_crops": _entry(decode_crops, prototype()),
        "read_header": _entry(read_header, transcoding),
        "transcode": _entry(transcode, transcoding),
    }


def _entry(kernel: Any, arguments: tuple[Any, ...]) -> Callable[[Any], None]:
    """Written out as source, since numba cannot walk through a nest of arrays."""
    scope: dict[str, Any] = {"carray": carray, "pointer": pointer, "types": types, "kernel": kernel}
    place = 0

    def expression(value: Any) -> str:
        nonlocal place
        if not isinstance(value, np.ndarray):
            scope[type(value).__name__] = type(value)
            return f"{type(value).__name__}({', '.join(map(expression, value))})"
        shape = "".join(f"table[{place + 1 + axis}], " for axis in range(value.ndim))
        element = "boolean" if value.dtype == np.bool_ else value.dtype.name
        text = f"carray(pointer(table[{place}], types.{element}), ({shape}))"
        place += FIELDS
        return text

    exec(f"def call(table): kernel({', '.join(map(expression, arguments))})", scope)
    call: Callable[[Any], None] = scope["call"]
    return call
