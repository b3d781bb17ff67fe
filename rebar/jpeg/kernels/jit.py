"""numba decorators for the kernels: without the GIL and bounds checks, with NumPy's error model.

Production code runs the kernels that :mod:`rebar.jpeg.kernel_cache` compiles ahead of time. Tests and benchmarks call
single functions, which numba compiles and caches.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rebar.jpeg.kernel_cache import sources_digest

_SOURCES_DIGEST = sources_digest().hex()


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that other kernels call."""
    return njit(nogil=True, boundscheck=False, error_model="numpy")(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function that is called for every block or symbol, and force LLVM to inline it."""
    return njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, and cache the machine code on disk.

    numba invalidates a cached function when its own source file changes. A kernel depends on the entire package, so
    the package's digest replaces the file's timestamp. Call each kernel with one signature only: two processes that
    save two signatures at once can choose the same file name.
    """
    dispatcher = njit(nogil=True, boundscheck=False, error_model="numpy", cache=True)(function)
    cache_file: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = _SOURCES_DIGEST
    return dispatcher


def read_only(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a read-only view of ``data``, because numba compiles writable and read-only arrays separately."""
    view = np.ascontiguousarray(data).view(np.ndarray)[:]
    view.flags.writeable = False
    return view
