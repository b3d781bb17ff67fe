"""Progressive JPEGs, and others of several scans, made sequential without loss: by libturbojpeg's transformer."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.turbojpeg import JpegError, load_turbojpeg

_COPY_NOTHING = 64  # TJXOPT_COPYNONE: no comments, no application data
_STOP_ON_WARNING = 8192  # TJFLAG_STOPONWARNING
_LIMIT_SCANS = 32768  # TJFLAG_LIMITSCANS: a few kilobytes can hold thousands of scans of a huge picture


class _Transform(ctypes.Structure):
    """``tjtransform``: a region (x, y, width, height; all zero: everything), the operation, options, a filter."""

    _fields_ = (
        ("region", ctypes.c_int * 4),
        ("operation", ctypes.c_int),
        ("options", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("filter", ctypes.c_void_p),
    )


def make_sequential(jpeg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same coefficients in one scan with the standard Huffman tables, uint8 ``[n]``.

    Raises JpegError where libturbojpeg reports anything, a stream cut short included.
    """
    library = load_turbojpeg()
    library.tjInitTransform.restype = ctypes.c_void_p
    library.tjFree.argtypes = library.tjDestroy.argtypes = [ctypes.c_void_p]
    source = np.ascontiguousarray(jpeg)
    handle = ctypes.c_void_p(library.tjInitTransform())
    out, size = ctypes.c_void_p(), ctypes.c_ulong()
    transform = _Transform(options=_COPY_NOTHING)
    try:
        status = library.tjTransform(
            handle,
            ctypes.c_void_p(source.ctypes.data),
            ctypes.c_ulong(source.size),
            1,
            ctypes.byref(out),
            ctypes.byref(size),
            ctypes.byref(transform),
            _STOP_ON_WARNING | _LIMIT_SCANS,
        )
        if status != 0:
            raise JpegError(library.tjGetErrorStr2(handle).decode(errors="replace"))
        return np.frombuffer(ctypes.string_at(out, size.value), np.uint8)
    finally:
        library.tjFree(out)
        library.tjDestroy(handle)
