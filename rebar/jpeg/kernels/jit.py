"""How this package's functions are compiled: without the interpreter lock.

What training and writing run is kept as a library by :mod:`rebar.jpeg.kernel_cache`. Other kernels are kept by numba,
which writes its cache files aside and renames them, so that a reader never sees half a file. It numbers the files of a
function's signatures, and two processes that save two signatures at once can take the same number: each kernel
that is called from Python is therefore called with one signature only.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


def _digest() -> str:
    sources = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()


_PACKAGE_DIGEST = _digest()


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a helper of the kernels; kept with the kernel that calls it."""
    return njit(nogil=True, boundscheck=False, error_model="numpy")(function)


def inlined(function: Callable[..., Any]) -> Any:
    """As :func:`compiled`, for what is called once a block: LLVM must not make it a call."""
    return njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, and keep the machine code on disk.

    numba holds a cached function current while its own file is; a kernel is built from this whole package,
    so the package's digest becomes the stamp.
    """
    dispatcher = njit(nogil=True, boundscheck=False, error_model="numpy", cache=True)(function)
    cache_file: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = _PACKAGE_DIGEST
    return dispatcher


def read_only(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A view of ``data`` that may not be written to: numba takes the two for different types."""
    view = np.ascontiguousarray(data).view(np.ndarray)[:]
    view.flags.writeable = False
    return view
