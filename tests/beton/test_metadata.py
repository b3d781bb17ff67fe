"""PNGs whose metadata Pillow cannot read keep their pixels and their orientation."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rebar.beton.decode import ImageError
from rebar.beton.encode import ImagePolicy, encode_image
from tests.jpeg.images import photograph

HEIGHT, WIDTH = 96, 128
IMAGE = photograph(HEIGHT, WIDTH)


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(mode: str = "RGB", exif: bool = False) -> bytes:
    buffer, tags = io.BytesIO(), Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(IMAGE[..., ::-1]).convert(mode).save(buffer, "PNG", **({"exif": tags.tobytes()} if exif else {}))
    return buffer.getvalue()


CHUNKS = {
    "large text": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20))),
    "profile": chunk(b"iCCP", b"a\0\5garbage"),
    "empty profile": chunk(b"iCCP", b""),
    "checksum": chunk(b"tEXt", b"a\0b", 1),
    "gamma": chunk(b"gAMA", b"a"),
    "name": chunk(b"\0\1\2\3", b"x"),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_png_with_unreadable_metadata_keeps_its_pixels(name: str, mode: str) -> None:
    content = png(mode)
    for place in (content.index(b"IDAT") - 4, content.index(b"IEND") - 4):
        damaged = content[:place] + CHUNKS[name] + content[place:]
        stored = encode_image(damaged, ImagePolicy(write_mode="raw"), 0)
        expected = encode_image(content, ImagePolicy(write_mode="raw"), 0)
        np.testing.assert_array_equal(stored.data, expected.data)


def test_png_with_unreadable_metadata_is_turned_upright() -> None:
    content = png(exif=True)
    place = content.index(b"IDAT") - 4
    stored = encode_image(content[:place] + CHUNKS["profile"] + content[place:], ImagePolicy(), 0)
    assert (stored.width, stored.height) == (HEIGHT, WIDTH)
    assert set(stored.irregularities) == {"PNG", "turned upright", "damaged metadata"}


def test_truncated_png_with_unreadable_metadata_is_refused() -> None:
    content = png()
    place = content.index(b"IDAT") - 4
    damaged = content[:place] + CHUNKS["profile"] + content[place:]
    with pytest.raises(ImageError) as raised:
        encode_image(damaged[: len(damaged) * 2 // 3], ImagePolicy(), 0)
    assert raised.value.code == "image-undecodable"
