"""From an image as found to an image as stored: passed through, or decoded, limited in size, and encoded.

Sizes follow FFCV's ``resizer`` and JPEGs are encoded by OpenCV with the same settings, so what is no JPEG decodes to
the same pixels as from FFCV's own writer; restart markers are put in besides. JPEGs are not decoded where that can be
avoided. Unlike there, an image's orientation tag is applied, and 16 bits a channel become 8 rather than being
clipped.

What the worker processes do: read images from the source and encode them, by the policy for bad ones.
"""

import os
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from rebar.beton.decode import ImageError, Side, SizeLimit, decode, shrink
from rebar.beton.format import MODE_JPG, MODE_RAW
from rebar.beton.passthrough import Limits, pass_through, restart_interval
from rebar.beton.source import Source
from rebar.errors import RebarError

MAX_SIDE = 65_535
"""Pixels; what the file format's 16 bits hold."""
MAX_JPEG_SIDE = 65_500
"""Pixels; what libjpeg writes."""


@dataclass(frozen=True)
class ImagePolicy:
    """How images are stored."""

    max_resolution: int | None = 500
    """Pixels of the limited side; larger images are shrunk to it. 0 or None: no limit."""
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
        """The limit of the images' size."""
        return SizeLimit(self.max_resolution, self.limit_side)

    def stores_jpeg(self, index: int) -> bool:
        """Whether source image ``index`` becomes a JPEG: a function of the policy and the index alone."""
        if self.write_mode != "proportion":
            return self.write_mode == "jpg"
        generator = np.random.Philox(key=np.array([self.seed % 2**64, index], np.uint64))
        return float(generator.random_raw() >> 11) * 2.0**-53 < self.compress_probability


@dataclass(frozen=True)
class EncodedImage:
    """An image as it goes into the file."""

    mode: int
    """MODE_JPG or MODE_RAW."""
    width: int
    height: int
    data: np.ndarray
    """uint8, one-dimensional."""
    passed_through: bool = False
    """Whether it is the source's own JPEG, its pixels the same to the bit."""
    oddities: tuple[str, ...] = ()
    """What was odd about the source image, such as ``grayscale`` or ``turned upright``."""


def encode_image(content: bytes, policy: ImagePolicy, index: int, *, repair: bool = False) -> EncodedImage:
    """Turn the content of an image file into what is stored of it.

    ``index`` is the image's number in its source; with ``repair``, what there is of a damaged one is taken. Raises
    ImageError.
    """
    as_jpeg = policy.stores_jpeg(index)
    if as_jpeg:
        quality = None if policy.keep_quality else policy.jpeg_quality
        passed = pass_through(content, Limits(policy.size_limit, quality, policy.restart_markers))
        if passed is not None and max(passed.width, passed.height) <= MAX_JPEG_SIDE:
            return EncodedImage(MODE_JPG, passed.width, passed.height, passed.data, passed.unchanged, passed.oddities)
    decoded = decode(content, policy.size_limit, repair=repair)
    bgr = shrink(decoded.bgr, policy.size_limit.apply(*decoded.size))
    height, width = bgr.shape[:2]
    limit = MAX_JPEG_SIDE if as_jpeg else MAX_SIDE
    if max(width, height) > limit:
        raise ImageError(f"is {width} x {height} pixels, but a side may have {limit}; limit the resolution")
    data = _encode_jpeg(bgr, policy) if as_jpeg else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).reshape(-1)
    return EncodedImage(MODE_JPG if as_jpeg else MODE_RAW, width, height, data, False, decoded.oddities)


def _encode_jpeg(bgr: np.ndarray, policy: ImagePolicy) -> np.ndarray:
    settings = [cv2.IMWRITE_JPEG_QUALITY, policy.jpeg_quality]
    if policy.restart_markers:
        settings += [cv2.IMWRITE_JPEG_RST_INTERVAL, restart_interval(bgr.shape[1])]
    encoded, data = cv2.imencode(".jpg", bgr, settings)
    if not encoded:
        raise ImageError(f"OpenCV cannot write it as a JPEG of {bgr.shape[1]} x {bgr.shape[0]} pixels")
    return data.reshape(-1)


OnBadImage = Literal["fail", "skip", "repair"]
"""What becomes of an image that cannot be decoded whole: the writing ends with its name; it is left out; or what there
is of it is stored, and it is left out where there is nothing."""


@dataclass(frozen=True)
class Outcome:
    """What became of one image."""

    label: int
    image: EncodedImage | None
    """None where it was left out."""
    fault: str = ""
    """Why it was left out, or had to be repaired."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What was odd about the image."""
        return self.image.oddities if self.image else ()


@dataclass(frozen=True)
class Encoder:
    """Encodes a run of ``order``, positions from and to; it is sent to the worker processes."""

    source: Source
    policy: ImagePolicy
    order: np.ndarray
    on_bad_image: OnBadImage
    page_size: int
    """Bytes; an image must fit into a page."""

    def __call__(self, run: tuple[int, int]) -> list[Outcome]:
        cv2.setNumThreads(1)  # there is a process for every core already
        return [self.encode(int(index)) for index in self.order[slice(*run)]]

    def encode(self, index: int) -> Outcome:
        """The label and the image of source index ``index``. Raises RebarError naming the image."""
        name = self.source.name(index)
        try:
            content = self.source.read(index)
        except OSError as error:
            raise RebarError(f"{name}: cannot be read: {error.strerror or error}") from None
        label = self.source.label(index)
        try:
            return Outcome(label, self._encode(content, name, index, repair=False))
        except ImageError as error:
            fault = str(error)
        if self.on_bad_image == "fail":
            raise RebarError(f"{name}: {fault}. With --on-bad-image skip or repair the others are written")
        if self.on_bad_image == "repair":
            try:
                return Outcome(label, self._encode(content, name, index, repair=True), fault)
            except ImageError:
                pass
        return Outcome(label, None, fault)

    def _encode(self, content: bytes, name: str, index: int, *, repair: bool) -> EncodedImage:
        image = encode_image(content, self.policy, index, repair=repair)
        if image.data.nbytes > self.page_size:
            raise ImageError(
                f"takes {image.data.nbytes:,} bytes ({image.width} x {image.height} pixels), more than a page of "
                f"{self.page_size:,}; limit the resolution, or store it as JPEG"
            )
        return replace(image, oddities=tuple(_named(kind, name) for kind in image.oddities))


def _named(kind: str, name: str) -> str:
    """A kind of file with what it pretends to be: ``PNG named .JPEG``."""
    suffix = os.path.splitext(name)[1]
    pretends = kind.isupper() and kind != "CMYK" and suffix.lower() in (".jpg", ".jpeg")
    return f"{kind} named {suffix}" if pretends else kind
