"""The JPEG format as the kernels see it: status codes, the header, and the standard tables of ITU-T T.81, annex K.

This module does not import numba.
"""

import functools
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebar.errors import RebarError


class JpegError(RebarError):
    """A JPEG that cannot be decoded completely. The message comes from the decoder and does not name the file."""


class Status(IntEnum):
    """The outcome of decoding or transcoding one image with the compiled kernels.

    Unless the status is OK, the output is undefined. UNSUPPORTED is a valid JPEG of a kind that the kernels do not
    decode, such as progressive, CMYK or 12-bit: decode the full image with
    :func:`rebar.jpeg.decode.decode_rgb`. WRONG_SIZE is an unexpected image size, or a crop outside the image.
    The other codes are defects of the file.
    """

    OK = 0
    UNSUPPORTED = 1
    CORRUPT_HEADER = 2
    CORRUPT_DATA = 3
    TRUNCATED = 4
    WRONG_SIZE = 5


# Plain integers, which numba compiles to constants.
OK = int(Status.OK)
UNSUPPORTED = int(Status.UNSUPPORTED)
CORRUPT_HEADER = int(Status.CORRUPT_HEADER)
CORRUPT_DATA = int(Status.CORRUPT_DATA)
TRUNCATED = int(Status.TRUNCATED)
WRONG_SIZE = int(Status.WRONG_SIZE)


class Header(NamedTuple):
    """The frame and scan parameters of a JPEG.

    ``height`` and ``width`` are in pixels. ``h_samp`` and ``v_samp`` are the luma sampling factors: the number of luma
    blocks of an MCU in each direction. ``restart_interval`` is in MCUs, 0 for none. ``entropy_start`` is the byte
    offset of the entropy-coded data.
    """

    height: int
    width: int
    components: int
    h_samp: int
    v_samp: int
    restart_interval: int
    entropy_start: int


# Natural (row-major) index of the k-th coefficient in zigzag order (T.81, figure A.6). In corrupt data, k may exceed
# 63; such coefficients overwrite the last one.
ZIGZAG = np.full(256, 63, np.uint8)
ZIGZAG[:64] = sorted(range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8))

QUANTIZATION = np.frombuffer(
    bytes.fromhex(
        "100b0c0e0c0a100e0d0e1211101318281a181616183123251d283a333d3c3933383740485c4e404457453738506d51575f626768673e"
        "4d71797064785c656763"
        "1112121815182f1a1a2f6342384263636363636363636363636363636363636363636363636363636363636363636363636363636363"
        "63636363636363636363"
    ),
    np.uint8,
).reshape(2, 64)
"""Tables K.1 and K.2, luma and chroma, in zigzag order."""

DC_CODES = tuple(
    bytes.fromhex(text)
    for text in (
        "00010501010101010100000000000000" + "000102030405060708090a0b",
        "00030101010101010101010000000000" + "000102030405060708090a0b",
    )
)
"""Tables K.3 and K.4, luma and chroma, as in a DHT segment: the number of codes of each length, then the symbols."""

AC_CODES = tuple(
    bytes.fromhex(text)
    for text in (
        "0002010303020403050504040000017d"
        "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a34353637"
        "38393a434445464748494a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3"
        "a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa",
        "00020102040403040705040400010277"
        "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a262728292a3536"
        "3738393a434445464748494a535455565758595a636465666768696a737475767778797a82838485868788898a92939495969798999a"
        "a2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa",
    )
)
"""Tables K.5 and K.6, luma and chroma, in the same form."""


@functools.cache
def quantization_tables(quality: int) -> NDArray[np.int64]:
    """Return libjpeg's tables for a quality of 1 to 100: int64 ``[2, 64]``, luma and chroma, in zigzag order."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((QUANTIZATION.astype(np.int64) * scale + 50) // 100, 1, 255)


def code_table(specification: bytes) -> NDArray[np.uint32]:
    """Return each symbol's code, uint32 ``[256]``: the length in bits 0-7, the code in bits 8-23; 0 if undefined."""
    table = np.zeros(256, np.uint32)
    code, position = 0, 16
    for length, count in enumerate(specification[:16], start=1):
        for symbol in specification[position : position + count]:
            table[symbol] = code << 8 | length
            code += 1
        position += count
        code <<= 1
    return table
