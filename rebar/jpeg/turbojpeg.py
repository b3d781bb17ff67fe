"""Call libturbojpeg through ctypes: decode complete JPEGs, and convert progressive ones to sequential ones.

ctypes releases the GIL during a call, so threads decode in parallel. Each thread has its own decompressor.

API: https://libjpeg-turbo.org/Documentation (TurboJPEG 2.x; 3.x keeps these functions).
"""

import ctypes
import ctypes.util
import functools
import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebar.errors import RebarError
from rebar.jpeg.format import JpegError

LIBRARY_VARIABLE = "TURBOJPEG_LIBRARY"
"""The environment variable with the path of the library. A path that cannot be loaded disables libturbojpeg."""

_CANDIDATES = ("libturbojpeg.so.0", "libturbojpeg.so", "libturbojpeg.dylib")
_PIXEL_FORMAT_RGB, _PIXEL_FORMAT_BGR = 0, 1
_GRAY = 3
_SAMPLING_FACTORS = {0: (1, 1), 1: (2, 1), 2: (2, 2), _GRAY: (1, 1), 4: (1, 2)}  # h_samp, v_samp by TJSAMP
_COPY_NOTHING = 64  # TJXOPT_COPYNONE: no comments, no application data
_STOP_ON_WARNING = 8192  # TJFLAG_STOPONWARNING
_LIMIT_SCANS = 32768  # TJFLAG_LIMITSCANS: a few kilobytes can hold thousands of scans of a huge image
_WARNING = 0  # TJERR_WARNING
_INSTALL = (
    "Install it with 'apt-get install libturbojpeg0' (Ubuntu: libturbojpeg) or 'conda install libjpeg-turbo', "
    f"or set {LIBRARY_VARIABLE} to its path"
)


@functools.cache
def load_turbojpeg() -> ctypes.CDLL:
    """Load the shared library, once per process.

    Raises RebarError if it is not installed. Use :func:`turbojpeg_available` to check without an exception.
    """
    path = os.environ.get(LIBRARY_VARIABLE)
    found = ctypes.util.find_library("turbojpeg")
    candidates = [path] if path else [*_CANDIDATES, *([found] if found else [])]
    for candidate in candidates:
        try:
            return _declare(ctypes.CDLL(candidate))
        except (OSError, AttributeError):
            continue
    problem = f"{LIBRARY_VARIABLE}={path} is not a turbojpeg library" if path else "libturbojpeg is not installed"
    raise RebarError(f"{problem}. {_INSTALL}.", code="turbojpeg-not-found")


@functools.cache
def turbojpeg_available() -> bool:
    """Return whether libturbojpeg can be loaded.

    Without it, :mod:`rebar.jpeg.decode` uses OpenCV or Pillow, and :func:`make_sequential` raises JpegError, so that
    progressive JPEGs are re-encoded instead of transcoded losslessly.
    """
    try:
        load_turbojpeg()
    except RebarError:
        return False
    return True


class _Transform(ctypes.Structure):
    """``tjtransform``; a region of zeros is the full image."""

    _fields_ = (
        ("region", ctypes.c_int * 4),
        ("operation", ctypes.c_int),
        ("options", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("filter", ctypes.c_void_p),
    )


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, integer = ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int
    out = ctypes.POINTER(ctypes.c_int)
    source: list[Any] = [pointer, pointer, size]  # the handle, the JPEG and its length
    library.tjInitDecompress.restype = library.tjInitTransform.restype = pointer
    library.tjInitDecompress.argtypes = library.tjInitTransform.argtypes = []
    library.tjDestroy.argtypes = library.tjFree.argtypes = [pointer]
    library.tjDecompressHeader3.argtypes = [*source, out, out, out, out]
    library.tjDecompress2.argtypes = [*source, pointer, integer, integer, integer, integer, integer]
    library.tjDecompressToYUVPlanes.argtypes = [*source, pointer, integer, pointer, integer, integer]
    transform = ctypes.POINTER(_Transform)
    library.tjTransform.argtypes = [*source, integer, ctypes.POINTER(pointer), ctypes.POINTER(size), transform, integer]
    library.tjGetErrorStr2.restype = ctypes.c_char_p
    library.tjGetErrorStr2.argtypes = library.tjGetErrorCode.argtypes = [pointer]
    return library


class _Decompressor:
    """A libturbojpeg handle for one image, destroyed with this object.

    A handle keeps the tables of its last image, and would decode an image without tables with them. Creating one takes
    8 microseconds.
    """

    def __init__(self) -> None:
        self.library = load_turbojpeg()
        self.handle = self.library.tjInitDecompress()

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.tjDestroy(self.handle)

    def check(self, status: int, accepted: str = "") -> None:
        """Raise JpegError with libturbojpeg's last message unless it is the ``accepted`` one."""
        if status != 0 and (message := _last_error(self.library, self.handle)) != accepted:
            code = "jpeg-unsupported" if "subsampling" in message else "jpeg-corrupt"
            raise JpegError(message, code=code)


def _last_error(library: ctypes.CDLL, handle: int) -> str:
    message: bytes = library.tjGetErrorStr2(handle)
    return message.decode(errors="replace")


class _Header(NamedTuple):
    height: int
    """Pixels, as ``width``."""
    width: int
    subsampling: int
    """TJSAMP."""
    warning: str
    """About metadata or extraneous bytes in the header, which do not affect the pixels; empty if there are none."""


def _read_header(tj: _Decompressor, source: NDArray[np.uint8]) -> _Header:
    width, height, subsampling, colorspace = (ctypes.c_int() for _ in range(4))
    header = (ctypes.byref(width), ctypes.byref(height), ctypes.byref(subsampling), ctypes.byref(colorspace))
    status = tj.library.tjDecompressHeader3(tj.handle, source.ctypes.data, source.size, *header)
    is_warning = status != 0 and tj.library.tjGetErrorCode(tj.handle) == _WARNING and subsampling.value >= 0
    warning = _last_error(tj.library, tj.handle) if is_warning else ""
    tj.check(status, accepted=warning)
    return _Header(height.value, width.value, subsampling.value, warning)


def decode_interleaved(
    source: NDArray[np.uint8], size: tuple[int, int], bgr: bool, scale_num: int
) -> NDArray[np.uint8]:
    """Decode a JPEG of ``size`` (height, width) to RGB or BGR, uint8 ``[height, width, 3]``.

    The result is scaled by ``scale_num`` / 8, rounded up. Raises JpegError for every error or warning of libturbojpeg,
    including truncated data, except for warnings about the header, and RebarError without libturbojpeg.
    """
    tj = _Decompressor()
    header = _read_header(tj, source)
    height, width = header[:2]
    if (height, width) != size:
        raise JpegError("Corrupt JPEG data: several frame headers", code="jpeg-corrupt")
    height, width = -(-height * scale_num // 8), -(-width * scale_num // 8)
    image = np.empty((height, width, 3), np.uint8)
    layout = (width, 0, height, _PIXEL_FORMAT_BGR if bgr else _PIXEL_FORMAT_RGB, 0)
    status = tj.library.tjDecompress2(tj.handle, source.ctypes.data, source.size, image.ctypes.data, *layout)
    tj.check(status, accepted=header.warning)  # the header is read again
    return image


def decode_planes(jpeg: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Decode a JPEG to its stored planes: Y, Cb and Cr, or Y alone, without upsampling or color conversion.

    Each plane is uint8 ``[height, width]`` at the component's own size. Raises the same errors as
    :func:`decode_interleaved`.
    """
    source = np.ascontiguousarray(jpeg)
    tj = _Decompressor()
    height, width, subsampling, _ = _read_header(tj, source)
    if subsampling not in _SAMPLING_FACTORS:
        raise JpegError(f"chroma subsampling {subsampling} is not supported", code="jpeg-unsupported")
    count = 1 if subsampling == _GRAY else 3
    h_samp, v_samp = _SAMPLING_FACTORS[subsampling]
    sizes = [(height, width)] + [(-(-height // v_samp), -(-width // h_samp))] * 2
    # Where the chroma is halved, libturbojpeg writes an even number of luma rows and columns.
    planes = [np.empty((rows + 1, columns + 1), np.uint8) for rows, columns in sizes[:count]]
    pointers = (ctypes.c_void_p * 3)(*[plane.ctypes.data for plane in planes])
    strides = (ctypes.c_int * 3)(*[plane.shape[1] for plane in planes])
    layout = (pointers, width, strides, height, 0)
    tj.check(tj.library.tjDecompressToYUVPlanes(tj.handle, source.ctypes.data, source.size, *layout))
    return [plane[:rows, :columns] for plane, (rows, columns) in zip(planes, sizes, strict=False)]


def make_sequential(jpeg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Losslessly convert a progressive or multi-scan JPEG to one sequential scan with the standard Huffman tables.

    Returns the JPEG's bytes, uint8 ``[n]``. Raises JpegError for every error or warning of libturbojpeg, including
    truncated data, and if libturbojpeg is not installed.
    """
    if not turbojpeg_available():
        raise JpegError("libturbojpeg, which converts progressive JPEGs, is not installed", code="turbojpeg-not-found")
    library = load_turbojpeg()
    source = np.ascontiguousarray(jpeg)
    handle = library.tjInitTransform()
    out, size = ctypes.c_void_p(), ctypes.c_ulong()
    transform = _Transform(options=_COPY_NOTHING)
    results = (1, ctypes.byref(out), ctypes.byref(size), ctypes.byref(transform))
    try:
        flags = _STOP_ON_WARNING | _LIMIT_SCANS
        if library.tjTransform(handle, source.ctypes.data, source.size, *results, flags) != 0:
            raise JpegError(_last_error(library, handle), code="jpeg-corrupt")
        return np.frombuffer(ctypes.string_at(out, size.value), np.uint8)
    finally:
        library.tjFree(out)
        library.tjDestroy(handle)
