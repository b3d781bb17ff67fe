"""Encode source images for storage: transcode JPEGs if possible, otherwise decode, downscale and re-encode.

Transcoding inserts restart markers and the standard Huffman tables without decoding to pixels. A JPEG within the
quality limit keeps its pixels bit for bit. A finer one is requantized, which loses no more than decoding and
re-encoding at the same size.

Sizes and JPEG settings are those of FFCV's writer, which stores other formats than JPEG with the same pixels. Unlike
FFCV, this module applies orientation tags, and scales 16-bit channels to 8 bits instead of clipping them.
"""

import functools
import os
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from rebar.beton.decode import MAX_PIXELS, ImageError, Side, SizeLimit, decode, downscale
from rebar.beton.format import MODE_JPG, MODE_RAW
from rebar.beton.images import Source
from rebar.beton.metadata import JPEG_START, is_upright
from rebar.cli import phase
from rebar.errors import RebarError
from rebar.jpeg.decode import read_size
from rebar.jpeg.format import OK, UNSUPPORTED, JpegError, quantization_tables
from rebar.jpeg.transcoder import Transcoder
from rebar.jpeg.turbojpeg import make_sequential

MAX_SIDE = 65_535
"""Pixels; the limit of the file format's 16-bit fields."""
MAX_JPEG_SIDE = 65_500
"""Pixels; the limit of libjpeg."""
_PROGRESSIVE_FRAME = b"\xff\xc2"
_MEAN_TOLERANCE = 1e-9  # relative
_MARKER_DISTANCE = 64  # pixels between restart markers, approximately

OnBadImage = Literal["fail", "skip", "repair"]
"""How to handle an image that cannot be decoded completely: raise an error, skip it, or store the part that can be
decoded. ``repair`` skips images of which no part can be decoded."""


@dataclass(frozen=True)
class ImagePolicy:
    """The settings that determine how images are stored."""

    max_resolution: int | None = 500
    """Limit of the longer (or shorter) side in pixels; larger images are downscaled. 0 or None: no limit."""
    limit_side: Side = "long"
    jpeg_quality: int = 90
    keep_quality: bool = False
    """Whether JPEGs within ``max_resolution`` are stored without requantization, even above ``jpeg_quality``."""
    write_mode: Literal["jpg", "raw", "proportion"] = "jpg"
    """``proportion``: JPEG with probability ``compress_probability``, otherwise raw."""
    compress_probability: float = 0.5
    restart_markers: bool = True
    """Whether to insert restart markers into JPEGs, so that decoding a crop can skip the data before it."""
    seed: int = 0

    @property
    def size_limit(self) -> SizeLimit:
        """The limit of image sizes."""
        return SizeLimit(self.max_resolution, self.limit_side)

    def stores_jpeg(self, index: int) -> bool:
        """Return whether source image ``index`` is stored as JPEG; depends on the policy and the index only."""
        if self.write_mode != "proportion":
            return self.write_mode == "jpg"
        generator = np.random.Philox(key=np.array([self.seed % 2**64, index], np.uint64))
        return float(generator.random_raw() >> 11) * 2.0**-53 < self.compress_probability


@dataclass(frozen=True)
class EncodedImage:
    """An image as stored in the file."""

    mode: int
    """MODE_JPG or MODE_RAW."""
    width: int
    height: int
    data: np.ndarray
    """uint8 ``[n]``"""
    lossless: bool = False
    """Whether it is the source's JPEG, transcoded with bit-identical pixels."""
    irregularities: tuple[str, ...] = ()
    """How the source image differs from a plain JPEG: ``grayscale``, ``turned upright``, ..."""


def encode_image(content: bytes, policy: ImagePolicy, index: int, *, repair: bool = False) -> EncodedImage:
    """Encode the content of an image file for storage.

    ``index`` is the image's index in its source. With ``repair``, truncated images are stored as far as they can be
    decoded. Raises ImageError.
    """
    as_jpeg = policy.stores_jpeg(index)
    if as_jpeg:
        quality = None if policy.keep_quality else policy.jpeg_quality
        jpeg = transcode_jpeg(content, TranscodeOptions(policy.size_limit, quality, policy.restart_markers))
        if jpeg is not None and max(jpeg.width, jpeg.height) <= MAX_JPEG_SIDE:
            return EncodedImage(MODE_JPG, jpeg.width, jpeg.height, jpeg.data, jpeg.lossless, jpeg.irregularities)
    decoded = decode(content, policy.size_limit, repair=repair)
    bgr = downscale(decoded.bgr, policy.size_limit.apply(*decoded.size))
    height, width = bgr.shape[:2]
    limit = MAX_JPEG_SIDE if as_jpeg else MAX_SIDE
    if max(width, height) > limit:
        raise ImageError(
            f"is {width} x {height} pixels, but a side may have at most {limit}. Set --max-resolution",
            code="image-too-large",
        )
    data = _encode_jpeg(bgr, policy) if as_jpeg else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).reshape(-1)
    return EncodedImage(MODE_JPG if as_jpeg else MODE_RAW, width, height, data, False, decoded.irregularities)


@dataclass(frozen=True)
class TranscodeOptions:
    """The settings of :func:`transcode_jpeg`."""

    size: SizeLimit
    quality: int | None
    """Quantization tables finer than libjpeg's at this quality are requantized to it; None: never requantize."""
    restart_markers: bool


@dataclass(frozen=True)
class Transcoded:
    """A transcoded JPEG."""

    data: np.ndarray
    """uint8 ``[n]``"""
    width: int
    height: int
    lossless: bool
    """Whether its pixels are bit-identical to the original's."""
    irregularities: tuple[str, ...]


def transcode_jpeg(content: bytes, options: TranscodeOptions) -> Transcoded | None:
    """Transcode a JPEG; return None if it must be decoded and re-encoded instead.

    Returns None for other formats, and for JPEGs that are damaged, exceed the size limit, must be rotated, or use an
    unsupported coding.
    """
    if not content.startswith(JPEG_START):
        return None
    transcoder, jpeg = _transcoder(), np.frombuffer(content, np.uint8)
    try:
        original_height, original_width = read_size(jpeg)
    except JpegError:
        return None
    irregularities: tuple[str, ...] = ()
    status, header = transcoder.read_header(jpeg)
    is_small = original_height * original_width <= MAX_PIXELS  # libjpeg keeps all coefficients in memory
    if status == UNSUPPORTED and is_small and _PROGRESSIVE_FRAME in content:  # a false positive only costs time
        try:
            jpeg = make_sequential(jpeg)
        except JpegError:
            return None
        irregularities = ("progressive",)
        status, header = transcoder.read_header(jpeg)
    size = header.width, header.height
    metadata_size = len(content) if irregularities else header.entropy_start
    if status != OK or options.size.apply(*size) != size or not is_upright(content, metadata_size):
        return None
    tables = tuple(transcoder.quantization(component).tobytes() for component in range(header.components))
    quality = None if _is_within(tables, options.quality) else options.quality
    if quality is not None and header.components > 1 and (header.h_samp, header.v_samp) != (2, 2):
        return None  # re-encoding subsamples the chroma, requantizing does not
    interval = restart_interval(header.width, 8 * header.h_samp) if options.restart_markers else 0
    status, data = transcoder.write(jpeg, header, interval, quality)
    if status != OK:
        return None
    if header.components == 1:
        irregularities += ("grayscale",)
    return Transcoded(data, *size, quality is None, irregularities)


@functools.lru_cache(maxsize=1024)
def restart_interval(width: int, mcu_width: int = 16) -> int:
    """Return the number of MCUs between restart markers for a JPEG that is ``width`` pixels wide.

    ``mcu_width`` is 16 pixels for horizontally subsampled chroma (4:2:0, OpenCV's default), and 8 otherwise. The
    interval divides the MCUs of a row, so that every row starts a segment, and is as near as possible to 64 pixels:
    shorter segments cost bytes, longer ones make crops decode more pixels that they do not need.
    """
    mcus_per_row = -(-width // mcu_width)
    divisors = (d for d in range(1, mcus_per_row + 1) if mcus_per_row % d == 0)
    return min(divisors, key=lambda divisor: (abs(divisor - _MARKER_DISTANCE // mcu_width), divisor))


@functools.cache
def _transcoder() -> Transcoder:
    """Return the cached transcoder. The kernels are loaded with the first JPEG, so other formats do not need them."""
    with phase("compiling the JPEG kernels"):  # prints nothing if they are cached
        return Transcoder()


@functools.lru_cache(maxsize=64)
def _is_within(tables: tuple[bytes, ...], quality: int | None) -> bool:
    """Return whether no quantization table (int16) has a smaller mean than libjpeg's at ``quality``."""
    if quality is None:
        return True
    limits = quantization_tables(quality).mean(axis=1)
    means = [np.frombuffer(table, np.int16).mean() for table in tables]
    return all(mean >= limits[min(component, 1)] * (1 - _MEAN_TOLERANCE) for component, mean in enumerate(means))


def _encode_jpeg(bgr: np.ndarray, policy: ImagePolicy) -> np.ndarray:
    settings = [cv2.IMWRITE_JPEG_QUALITY, policy.jpeg_quality]
    if policy.restart_markers:
        settings += [cv2.IMWRITE_JPEG_RST_INTERVAL, restart_interval(bgr.shape[1])]
    encoded, data = cv2.imencode(".jpg", bgr, settings)
    if not encoded:
        raise ImageError(
            f"OpenCV cannot encode it as a JPEG of {bgr.shape[1]} x {bgr.shape[0]} pixels", code="image-too-large"
        )
    return data.reshape(-1)


@dataclass(frozen=True)
class Outcome:
    """The result of encoding one image."""

    label: int
    image: EncodedImage | None
    """None if it was skipped."""
    fault: str = ""
    """Why it was skipped or repaired."""


@dataclass(frozen=True)
class Encoder:
    """Encodes images of a source. Worker processes receive a pickled copy and call it with ranges of ``order``."""

    source: Source
    policy: ImagePolicy
    order: np.ndarray
    on_bad_image: OnBadImage
    page_size: int
    """The maximum size of an encoded image in bytes."""

    def __call__(self, bounds: tuple[int, int]) -> list[Outcome]:
        """Encode the images at positions ``start`` to ``stop`` of the order."""
        cv2.setNumThreads(1)  # every core has a worker process
        return [self.encode(int(index)) for index in self.order[slice(*bounds)]]

    def encode(self, index: int) -> Outcome:
        """Encode source image ``index``. Raises RebarError; the message contains the image's name."""
        name = self.source.name(index)
        try:
            content = self.source.read(index)
        except OSError as error:
            raise RebarError(
                f"{name} cannot be read: {error.strerror or error}. Check the disk or the network, and run the same "
                "command again.",
                code="image-unreadable",
            ) from None
        label = self.source.label(index)
        try:
            return Outcome(label, self._encode(content, name, index, repair=False))
        except ImageError as error:
            fault, code = str(error), error.code
        if self.on_bad_image == "fail":
            raise RebarError(
                f"{name}: {fault}. Set --on-bad-image skip or repair to write the other images.", code=code
            )
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
                f"{self.page_size:,}. Set --max-resolution, or store it as JPEG",
                code="image-too-large",
            )
        return replace(image, irregularities=tuple(_with_suffix(kind, name) for kind in image.irregularities))


def _with_suffix(kind: str, name: str) -> str:
    """Add the file's suffix to a format that does not match it: ``PNG named .JPEG``."""
    suffix = os.path.splitext(name)[1]
    mismatched = kind.isupper() and kind != "CMYK" and suffix.lower() in (".jpg", ".jpeg")
    return f"{kind} named {suffix}" if mismatched else kind
