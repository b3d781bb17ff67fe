"""Decode complete JPEGs with libturbojpeg, or with OpenCV or Pillow if it is not installed.

The markers are checked first, so that all libraries and the writer agree on which JPEGs are truncated. OpenCV and
Pillow do not report libjpeg's warnings. For them, the transcoder's kernel validates the entropy-coded data of
sequential JPEGs. Bit errors in progressive JPEGs are not detected.
"""

import functools
import io
import re
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.errors import RebarError
from rebar.jpeg.format import JpegError, Status
from rebar.jpeg.turbojpeg import decode_interleaved, turbojpeg_available

_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # neither a stuffed byte nor a restart marker
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_TAIL_BYTES = 64  # searched for the EOI marker before the complete file is

Size = tuple[int, int]
"""Height and width in pixels."""


def read_size(jpeg: NDArray[np.uint8]) -> Size:
    """Return the size in the frame header of a complete JPEG, without decoding it.

    A JPEG is complete if it ends with an EOI marker, which padding (0x00 or 0xFF) or other data may follow. This
    function decides it for the writer, for verification and for full-image decoding; the kernels use the same rule
    (:func:`rebar.jpeg.kernels.markers.has_end`). Raises JpegError for data that is truncated or not a JPEG.
    """
    return _read_frame(np.ascontiguousarray(jpeg))[:2]


def decode_rgb(jpeg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode a JPEG to RGB, uint8 ``[height, width, 3]``; grayscale becomes three equal channels.

    The orientation tag is ignored. Raises JpegError for data that is not a JPEG, truncated or corrupt, and for CMYK.
    With libturbojpeg, all of its warnings are errors, except for those about the header.
    """
    source = np.ascontiguousarray(jpeg)
    size = read_size(source)
    image = _decode_with_turbojpeg(source, size, bgr=False, scale_num=8)
    return np.ascontiguousarray(_decode_without_turbojpeg(source, 8)[..., ::-1]) if image is None else image


def decode_bgr(jpeg: NDArray[np.uint8], scale_num: int = 8) -> NDArray[np.uint8]:
    """Decode a JPEG to BGR, uint8 ``[height, width, 3]``, scaled by ``scale_num`` / 8 (1, 2, 4 or 8), rounded up.

    A reduced scale takes less time and memory, because libjpeg uses a smaller IDCT. Raises JpegError as
    :func:`decode_rgb` does.
    """
    source = np.ascontiguousarray(jpeg)
    size = read_size(source)
    image = _decode_with_turbojpeg(source, size, bgr=True, scale_num=scale_num)
    return _decode_without_turbojpeg(source, scale_num) if image is None else image


def _decode_with_turbojpeg(source: NDArray[np.uint8], size: Size, *, bgr: bool, scale_num: int) -> Any:
    """Return the image; None if libturbojpeg is not installed or does not support the chroma subsampling."""
    if not turbojpeg_available():
        return None
    try:
        return decode_interleaved(source, size, bgr, scale_num)
    except JpegError as error:
        if error.code == "jpeg-unsupported":
            return None
        raise


def _decode_without_turbojpeg(jpeg: NDArray[np.uint8], scale_num: int) -> NDArray[np.uint8]:
    if scale_num not in (1, 2, 4, 8):
        raise ValueError(f"scale_num must be 1, 2, 4 or 8, not {scale_num}")
    content = jpeg.tobytes()
    height, width, components = _read_frame(jpeg)
    if components not in (1, 3):
        raise JpegError("CMYK and other 4-component JPEGs are not supported", code="jpeg-unsupported")
    if _kernels_available():
        _check_entropy_coded_data(jpeg)
    try:
        image = _decode_with_opencv(jpeg, scale_num)
    except ImportError:
        image = _decode_with_pillow(content, scale_num)
    expected = (-(-height * scale_num // 8), -(-width * scale_num // 8), 3)
    if image.shape != expected:
        raise JpegError(f"Corrupt JPEG data: decoded to {image.shape}, not {expected}", code="jpeg-corrupt")
    return image


def _decode_with_opencv(jpeg: NDArray[np.uint8], scale_num: int) -> NDArray[np.uint8]:
    import cv2

    reduced = {
        1: cv2.IMREAD_REDUCED_COLOR_8,
        2: cv2.IMREAD_REDUCED_COLOR_4,
        4: cv2.IMREAD_REDUCED_COLOR_2,
        8: cv2.IMREAD_COLOR,
    }
    try:
        image = cv2.imdecode(jpeg, reduced[scale_num] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise JpegError(f"Corrupt JPEG data: {error}", code="jpeg-corrupt") from None
    if image is None:
        raise JpegError("Corrupt JPEG data: OpenCV cannot decode it", code="jpeg-corrupt")
    return np.asarray(image, np.uint8)


def _decode_with_pillow(content: bytes, scale_num: int) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            width, height = image.size
            image.draft(
                "RGB", (max(1, width * scale_num // 8), max(1, height * scale_num // 8))
            )  # libjpeg scales while it decodes
            scaled = (-(-width * scale_num // 8), -(-height * scale_num // 8))
            rgb = np.asarray(
                image.convert("RGB").resize(scaled, Image.Resampling.BOX)
            )  # only copies if draft() has scaled
    except Exception as error:  # Pillow raises many exception classes for corrupt files
        raise JpegError(f"Corrupt JPEG data: {error}", code="jpeg-corrupt") from None
    return np.ascontiguousarray(rgb[..., ::-1])


def _read_frame(jpeg: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Return height, width and number of components. Raises JpegError as :func:`read_size` does."""
    if jpeg[:2].tobytes() != bytes([0xFF, _SOI]):
        raise JpegError("Not a JPEG file: it does not start with an SOI marker", code="jpeg-corrupt")
    has_end = jpeg[-_TAIL_BYTES:].tobytes().rstrip(b"\0\xff").endswith(bytes([0xFF, _EOI]))
    position, frame = 2, None
    while (found := _MARKER.search(jpeg.data, position)) is not None:
        marker, position = found[1][0], found.end()
        if marker == _EOI:
            has_end = True
        elif marker in _SOF and frame is None:
            frame = jpeg[position : position + 8].tobytes()
        if marker == _EOI or (has_end and frame is not None):
            break
        position += int.from_bytes(jpeg[position : position + 2].tobytes(), "big")
    if not has_end:
        raise JpegError("it is truncated: its end-of-image marker (EOI) is missing", code="jpeg-corrupt")
    if frame is None:
        raise JpegError("JPEG datastream contains no image", code="jpeg-corrupt")
    if len(frame) < 8 or frame[:2] < b"\0\x08":
        raise JpegError("Corrupt JPEG data: the frame header is too short", code="jpeg-corrupt")
    return int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[5:7], "big"), frame[7]


@functools.cache
def _kernels_available() -> bool:
    from rebar.jpeg.kernel_cache import load_kernel

    try:
        load_kernel("transcode")
    except RebarError:
        return False
    return True


_thread_local = threading.local()


def _check_entropy_coded_data(jpeg: NDArray[np.uint8]) -> None:
    """Raise JpegError for invalid entropy-coded data in a JPEG that the transcoder supports."""
    from rebar.jpeg.transcoder import Transcoder

    if not hasattr(_thread_local, "transcoder"):
        _thread_local.transcoder = Transcoder()
    transcoder: Transcoder = _thread_local.transcoder
    status, header = transcoder.read_header(jpeg)
    if status == Status.OK:
        status, _ = transcoder.write(jpeg, header, interval=0)
        if status in (Status.CORRUPT_DATA, Status.TRUNCATED):
            raise JpegError("Corrupt JPEG data: invalid entropy-coded data", code="jpeg-corrupt")
