"""libturbojpeg through ctypes: a whole JPEG to RGB.

ctypes gives up the interpreter lock during a call, so threads decode side by side. A decompressor
belongs to the thread that made it.

API: https://libjpeg-turbo.org/Documentation (TurboJPEG 2.x; 3.x keeps these functions).
"""

import ctypes
import ctypes.util
import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from rebar.errors import RebarError

LIBRARY_VARIABLE = "TURBOJPEG_LIBRARY"
_CANDIDATES = ("libturbojpeg.so.0", "libturbojpeg.so", "libturbojpeg.dylib")
_PIXEL_FORMAT_RGB, _PIXEL_FORMAT_BGR = 0, 1
_GRAY = 3
_CHROMA_FACTORS = {0: (1, 1), 1: (2, 1), 2: (2, 2), _GRAY: (1, 1), 4: (1, 2)}  # by TJSAMP: luma columns, rows a sample
_INSTALL = (
    "install it with 'apt-get install libturbojpeg0' (Ubuntu: libturbojpeg) or 'conda install libjpeg-turbo', "
    f"or point {LIBRARY_VARIABLE} at it; 'python -m rebar.doctor' shows what is there"
)


class JpegError(Exception):
    """A JPEG that cannot be decoded, or only in part."""


@functools.cache
def load_turbojpeg() -> ctypes.CDLL:
    """The shared library. Raises RebarError, saying how to install it, where there is none."""
    named = os.environ.get(LIBRARY_VARIABLE)
    found = ctypes.util.find_library("turbojpeg")
    candidates = [named] if named else [*_CANDIDATES, *([found] if found else [])]
    for candidate in candidates:
        try:
            return _declare(ctypes.CDLL(candidate))
        except (OSError, AttributeError):
            continue
    what = f"{LIBRARY_VARIABLE}={named} is no turbojpeg library" if named else "libturbojpeg is not installed"
    raise RebarError(f"{what}: {_INSTALL}")


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    handle, pointer, size, integer = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int
    out = ctypes.POINTER(ctypes.c_int)
    library.tjInitDecompress.restype = handle
    library.tjInitDecompress.argtypes = []
    library.tjDestroy.argtypes = [handle]
    library.tjDecompressHeader3.argtypes = [handle, pointer, size, out, out, out, out]
    library.tjDecompress2.argtypes = [
        handle,
        pointer,
        size,
        pointer,
        integer,
        integer,
        integer,
        integer,
        integer,
    ]
    library.tjDecompressToYUVPlanes.argtypes = [handle, pointer, size, pointer, integer, pointer, integer, integer]
    library.tjGetErrorStr2.restype = ctypes.c_char_p
    library.tjGetErrorStr2.argtypes = [handle]
    return library


class _Decompressor:
    """One libturbojpeg handle, freed with its owner."""

    def __init__(self) -> None:
        self.library = load_turbojpeg()
        self.handle = self.library.tjInitDecompress()

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.tjDestroy(self.handle)

    def check(self, status: int) -> None:
        if status != 0:
            raise JpegError(self.library.tjGetErrorStr2(self.handle).decode(errors="replace"))


_of_this_thread = threading.local()


@contextmanager
def _decompressor() -> Iterator[_Decompressor]:
    """This thread's, for one image."""
    if not hasattr(_of_this_thread, "decompressor"):
        _of_this_thread.decompressor = _Decompressor()
    try:
        yield _of_this_thread.decompressor
    except JpegError:
        # libturbojpeg 2.1 may write the next image nowhere after it failed within a header
        del _of_this_thread.decompressor
        raise


def _read_header(tj: _Decompressor, source: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Height and width in pixels, and the chroma subsampling (TJSAMP)."""
    width, height, subsampling, colorspace = (ctypes.c_int() for _ in range(4))
    header = (ctypes.byref(width), ctypes.byref(height), ctypes.byref(subsampling), ctypes.byref(colorspace))
    tj.check(tj.library.tjDecompressHeader3(tj.handle, source.ctypes.data, source.size, *header))
    return height.value, width.value, subsampling.value


def decode_rgb(jpeg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode a JPEG to RGB, uint8 ``[height, width, 3]``; grayscale becomes three equal channels.

    Raises JpegError where libturbojpeg reports anything, a stream cut short included.
    """
    source = np.ascontiguousarray(jpeg)
    with _decompressor() as tj:
        height, width, _ = _read_header(tj, source)
        rgb = np.empty((height, width, 3), np.uint8)
        layout = (width, 0, height, _PIXEL_FORMAT_RGB, 0)
        tj.check(tj.library.tjDecompress2(tj.handle, source.ctypes.data, source.size, rgb.ctypes.data, *layout))
    return rgb


def decode_bgr(jpeg: NDArray[np.uint8], eighths: int = 8) -> NDArray[np.uint8]:
    """Decode a JPEG to BGR, uint8 ``[height, width, 3]``, at 1 to 8 ``eighths`` of its size, rounded up.

    Less than eight is quicker and needs less memory: each block is transformed to so many samples a side. Raises
    JpegError as :func:`decode_rgb` does.
    """
    source = np.ascontiguousarray(jpeg)
    with _decompressor() as tj:
        height, width, _ = _read_header(tj, source)
        height, width = -(-height * eighths // 8), -(-width * eighths // 8)
        bgr = np.empty((height, width, 3), np.uint8)
        layout = (width, 0, height, _PIXEL_FORMAT_BGR, 0)
        tj.check(tj.library.tjDecompress2(tj.handle, source.ctypes.data, source.size, bgr.ctypes.data, *layout))
    return bgr


def decode_planes(jpeg: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Decode a JPEG to its stored planes, Y, Cb, Cr or Y alone, without upsampling or colour conversion.

    Each uint8 ``[height, width]`` of the component's own size. Raises JpegError as :func:`decode_rgb` does.
    """
    source = np.ascontiguousarray(jpeg)
    with _decompressor() as tj:
        height, width, subsampling = _read_header(tj, source)
        if subsampling not in _CHROMA_FACTORS:
            raise JpegError(f"chroma subsampling {subsampling} has no planes")
        count = 1 if subsampling == _GRAY else 3
        across, down = _CHROMA_FACTORS[subsampling]
        sizes = [(height, width)] + [(-(-height // down), -(-width // across))] * 2
        # The library writes whole luma pairs where the chroma is halved.
        planes = [np.empty((high + 1, wide + 1), np.uint8) for high, wide in sizes[:count]]
        pointers = (ctypes.c_void_p * 3)(*[plane.ctypes.data for plane in planes])
        strides = (ctypes.c_int * 3)(*[plane.shape[1] for plane in planes])
        layout = (pointers, width, strides, height, 0)
        tj.check(tj.library.tjDecompressToYUVPlanes(tj.handle, source.ctypes.data, source.size, *layout))
    return [plane[:high, :wide] for plane, (high, wide) in zip(planes, sizes, strict=False)]
