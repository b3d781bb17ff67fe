"""From a picture as found to a picture as stored: passed through, or decoded, limited in size, and encoded.

Sizes follow FFCV's ``resizer`` and JPEGs are encoded by OpenCV with the same settings, so what is no JPEG decodes to
the same pixels as from FFCV's own writer; restart markers are put in besides. JPEGs are not decoded where that can be
avoided. Unlike there, a picture's orientation tag is applied, and 16 bits a channel become 8 rather than being
clipped.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from rebar.beton.decoding import PictureError, decode
from rebar.beton.format import MODE_JPG, MODE_RAW
from rebar.beton.passthrough import Limits, pass_through, restart_interval
from rebar.beton.sizes import Side, SizeLimit, shrink

MAX_SIDE = 65_535
"""Pixels; what the file format's 16 bits hold."""
MAX_JPEG_SIDE = 65_500
"""Pixels; what libjpeg writes."""


@dataclass(frozen=True)
class ImagePolicy:
    """How pictures are stored."""

    max_resolution: int | None = 500
    """Pixels of the limited side; larger pictures are shrunk to it. 0 or None: no limit."""
    limit_side: Side = "long"
    jpeg_quality: int = 90
    keep_quality: bool = False
    """Whether every JPEG within the resolution is passed through, however fine its quantisation."""
    write_mode: Literal["jpg", "raw", "proportion"] = "jpg"
    """``proportion``: JPEG with probability ``compress_probability``, else raw."""
    compress_probability: float = 0.5
    restart_markers: bool = True
    """Whether JPEGs can be entered in the middle, so that a crop is decoded without what lies before it."""
    seed: int = 0

    @property
    def size_limit(self) -> SizeLimit:
        """The limit of the pictures' size."""
        return SizeLimit(self.max_resolution, self.limit_side)

    def stores_jpeg(self, index: int) -> bool:
        """Whether source picture ``index`` becomes a JPEG: a function of the policy and the index alone."""
        if self.write_mode != "proportion":
            return self.write_mode == "jpg"
        generator = np.random.Philox(key=np.array([self.seed % 2**64, index], np.uint64))
        return float(generator.random_raw() >> 11) * 2.0**-53 < self.compress_probability


@dataclass(frozen=True)
class EncodedPicture:
    """A picture as it goes into the file."""

    mode: int
    """MODE_JPG or MODE_RAW."""
    width: int
    height: int
    data: np.ndarray
    """uint8, one-dimensional."""
    passed_through: bool = False
    """Whether it is the source's own JPEG, its pixels the same to the bit."""
    oddities: tuple[str, ...] = ()
    """What was odd about the source picture, such as ``grayscale`` or ``turned upright``."""


def encode_picture(content: bytes, policy: ImagePolicy, index: int, *, repair: bool = False) -> EncodedPicture:
    """Turn the content of a picture file into what is stored of it.

    ``index`` is the picture's number in its source; with ``repair``, what there is of a damaged one is taken. Raises
    PictureError.
    """
    as_jpeg = policy.stores_jpeg(index)
    if as_jpeg:
        quality = None if policy.keep_quality else policy.jpeg_quality
        passed = pass_through(content, Limits(policy.size_limit, quality, policy.restart_markers))
        if passed is not None and max(passed.width, passed.height) <= MAX_JPEG_SIDE:
            return EncodedPicture(MODE_JPG, passed.width, passed.height, passed.data, passed.unchanged, passed.oddities)
    decoded = decode(content, policy.size_limit, repair=repair)
    bgr = shrink(decoded.bgr, policy.size_limit.apply(*decoded.size))
    height, width = bgr.shape[:2]
    limit = MAX_JPEG_SIDE if as_jpeg else MAX_SIDE
    if max(width, height) > limit:
        raise PictureError(f"is {width} x {height} pixels, but a side may have {limit}; limit the resolution")
    data = _encode_jpeg(bgr, policy) if as_jpeg else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).reshape(-1)
    return EncodedPicture(MODE_JPG if as_jpeg else MODE_RAW, width, height, data, False, decoded.oddities)


def _encode_jpeg(bgr: np.ndarray, policy: ImagePolicy) -> np.ndarray:
    settings = [cv2.IMWRITE_JPEG_QUALITY, policy.jpeg_quality]
    if policy.restart_markers:
        settings += [cv2.IMWRITE_JPEG_RST_INTERVAL, restart_interval(bgr.shape[1])]
    encoded, data = cv2.imencode(".jpg", bgr, settings)
    if not encoded:
        raise PictureError(f"OpenCV cannot write it as a JPEG of {bgr.shape[1]} x {bgr.shape[0]} pixels")
    return data.reshape(-1)
