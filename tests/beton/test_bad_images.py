"""Irregular and bad image files of every kind, written by write_dataset.py."""

import contextlib
import io
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

from rebar.beton import BetonFile
from rebar.beton.write_report import report_path
from rebar.errors import RebarError
from tests.conftest import REPOSITORY
from tests.jpeg.images import encode, photograph
from write_dataset import main

IMAGE = photograph(60, 80)
PLAIN = encode(photograph(90, 120), quality=85)


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved("JPEG", exif=exif.tobytes(), quality=80)


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE[..., 0].astype(np.uint16) << 8).save(buffer, "PNG")
    return buffer.getvalue()


def arithmetic() -> bytes:
    """Return a JPEG whose frame marker indicates arithmetic coding, which neither decoder supports."""
    return bytes(PLAIN).replace(b"\xff\xc0", b"\xff\xcb", 1)


def twelve_bits() -> bytes:
    content = bytearray(bytes(PLAIN).replace(b"\xff\xc0", b"\xff\xc1", 1))
    content[content.index(b"\xff\xc1") + 4] = 12
    return bytes(content)


GOOD: dict[str, tuple[bytes, tuple[int, int], str | None]] = {  # name -> content, stored width and height, kind
    "plain.JPEG": (saved("JPEG", quality=80), (80, 60), None),
    "gray.JPEG": (saved("JPEG", "L", quality=80), (80, 60), "grayscale"),
    "cmyk.JPEG": (saved("JPEG", "CMYK"), (80, 60), "CMYK"),
    "progressive.JPEG": (saved("JPEG", progressive=True, quality=80), (80, 60), "progressive"),
    "rotated.JPEG": (rotated(), (60, 80), "turned upright"),
    "png.JPEG": (saved("PNG"), (80, 60), "PNG named .JPEG"),
    "bmp.JPEG": (saved("BMP"), (80, 60), "BMP named .JPEG"),
    "webp.JPEG": (saved("WEBP", lossless=True), (80, 60), "WEBP named .JPEG"),
    "gif.JPEG": (saved("GIF"), (80, 60), "GIF named .JPEG"),
    "deep.png": (sixteen_bits(), (80, 60), "16 bits"),
    "alpha.png": (saved("PNG", "RGBA"), (80, 60), "transparency"),
    "dot.JPEG": (bytes(encode(photograph(1, 1))), (1, 1), None),
    "trailing.JPEG": (saved("JPEG", quality=80) + b"more bytes after the end", (80, 60), None),
}
BAD: dict[str, tuple[bytes, str]] = {
    "empty.JPEG": (b"", "is empty"),
    "text.JPEG": (b"<html>404</html>", "does not recognize its format"),
    "header.JPEG": (bytes(PLAIN[:100]), "cannot be decoded"),
    "arithmetic.JPEG": (arithmetic(), "cannot be decoded"),
    "twelve.JPEG": (twelve_bits(), "cannot be decoded"),
}
TRUNCATED = bytes(PLAIN[: PLAIN.size * 2 // 3])


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    (root / "tree" / "n0").mkdir(parents=True)
    for name, content in files.items():
        (root / "tree" / "n0" / name).write_bytes(content)
    return root / "tree"


def arguments(tree: Path, target: Path, *options: str) -> list[str]:
    return ["--split", "val", "--data-dir", str(tree), "--write-path", str(target), "--num-workers", "1", *options]


def error_of(tree: Path, target: Path, *options: str) -> RebarError:
    with pytest.raises(RebarError) as raised:
        main(arguments(tree, target, *options))
    assert not target.exists()
    return raised.value


def decode_with_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def test_write_dataset_stores_irregular_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree, target = write_tree(tmp_path, {name: made[0] for name, made in GOOD.items()}), tmp_path / "val.beton"
    main(arguments(tree, target, "--jpeg-quality", "95"))
    printed = capsys.readouterr().out
    file, report = BetonFile.open(target), json.loads(report_path(target).read_text())
    for index, name in enumerate(sorted(GOOD)):
        content, size, kind = GOOD[name]
        assert (file.widths[index], file.heights[index]) == size, name
        rgb = cv2.imdecode(file.image_bytes(index), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
        if kind in ("turned upright", "16 bits"):
            expected = np.rot90(decode_with_pillow(content), -1) if kind == "turned upright" else IMAGE[..., :1]
        else:
            expected = decode_with_pillow(content)
        assert np.abs(rgb - expected).mean() < (8 if name == "gif.JPEG" else 5), name
        if kind is not None:
            assert report["kinds"][kind] == {"count": 1, "names": [str(tree / "n0" / name)]}
            assert f"1 {kind}" in printed
    assert report["passed_through"] == 5
    assert report["encoded"] == len(GOOD) - 5


@pytest.mark.parametrize("name", [*BAD, "truncated.JPEG"])
def test_on_bad_image_fail_names_the_image(tmp_path: Path, name: str) -> None:
    content, reason = BAD.get(name, (TRUNCATED, "truncated"))
    tree = write_tree(tmp_path, {"a.JPEG": bytes(PLAIN), name: content})
    error = error_of(tree, tmp_path / "val.beton")
    assert error.code == "image-undecodable"
    assert f"n0/{name}: " in str(error)
    assert reason in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


@pytest.mark.parametrize("policy", ["skip", "repair"])
def test_on_bad_image_skip_or_repair_lists_the_images(
    tmp_path: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"good.JPEG": bytes(PLAIN), "truncated.JPEG": TRUNCATED, **{name: made[0] for name, made in BAD.items()}}
    tree, target = write_tree(tmp_path, files), tmp_path / "val.beton"
    main(arguments(tree, target, "--on-bad-image", policy))
    repaired = int(policy == "repair")
    assert f"{repaired} repaired, {len(BAD) + 1 - repaired} skipped" in capsys.readouterr().out
    report, file = json.loads(report_path(target).read_text()), BetonFile.open(target)
    assert len(file) == 1 + repaired
    listed = {Path(bad["name"]).name: bad["reason"] for bad in report["skipped"]}
    assert listed.keys() == BAD.keys() | (set() if repaired else {"truncated.JPEG"})
    assert all(reason in listed[name] for name, (_, reason) in BAD.items())
    if repaired:
        assert [Path(bad["name"]).name for bad in report["repaired"]] == ["truncated.JPEG"]
        assert (file.heights[1], file.widths[1]) == (90, 120)
        complete, found = (
            cv2.imdecode(np.asarray(jpeg), cv2.IMREAD_COLOR)[:40].astype(int) for jpeg in (PLAIN, file.image_bytes(1))
        )
        assert np.abs(complete - found).mean() < 5


def test_no_file_is_written_if_all_images_are_bad(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, {name: made[0] for name, made in BAD.items()})
    assert error_of(tree, tmp_path / "val.beton", "--on-bad-image", "skip").code == "write-no-images"
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def gray_jpeg(width: int, height: int) -> bytes:
    """Return a JPEG that is mid-gray in the upper half and darker below.

    It is assembled from restart segments of one row of blocks with DC coefficients only.
    """
    small = bytes(cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1])
    head, _, scan = small.partition(b"\xff\xda")
    place = head.index(b"\xff\xc0")
    frame = (
        head[:place]
        + b"\xff\xc0\x00\x0b\x08"
        + height.to_bytes(2, "big")
        + width.to_bytes(2, "big")
        + head[place + 9 :]
    )
    columns, rows = -(-width // 8), -(-height // 8)
    # Standard luma tables: DC category 0 is 00, category 6 is 1110; end of block is 1010.
    flat = "001010"
    dark = "1110" + "000000" + "1010"
    row_bits = {False: flat * columns, True: dark + flat * (columns - 1)}
    packed = {key: _pack(bits) for key, bits in row_bits.items()}
    segments = b"".join(packed[number >= rows // 2] + bytes([0xFF, 0xD0 + number % 8]) for number in range(rows))
    interval = b"\xff\xdd\x00\x04" + columns.to_bytes(2, "big")
    length = int.from_bytes(scan[:2], "big")
    return frame + interval + b"\xff\xda" + scan[:length] + segments[:-2] + b"\xff\xd9"


def _pack(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")


def test_jpeg_of_300_megapixels_is_decoded_in_little_memory(tmp_path: Path) -> None:
    tree, target = write_tree(tmp_path, {"huge.JPEG": gray_jpeg(20_000, 15_000)}), tmp_path / "val.beton"
    command = [sys.executable, str(REPOSITORY / "write_dataset.py"), *arguments(tree, target)]
    process = psutil.Popen(command, stdout=subprocess.PIPE)
    peak = peak_memory(process, lambda member: member.memory_info().rss)
    assert process.returncode == 0
    file = BetonFile.open(target)
    assert (file.widths[0], file.heights[0]) == (500, 375)
    rgb = cv2.imdecode(file.image_bytes(0), cv2.IMREAD_COLOR)
    assert rgb[:180].mean() > rgb[195:].mean() + 10
    assert peak < 700e6  # at full size, the pixels alone have 900 MB


def peak_memory(process: psutil.Popen, memory: Callable[[psutil.Process], int]) -> int:
    """Return the largest memory of the process or any descendant until the process exits."""
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max(peak, *(memory(member) for member in [process, *process.children(recursive=True)]))
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(0.02)
    return peak


def test_gigapixel_png_is_refused_as_too_large(tmp_path: Path) -> None:
    """A PNG cannot be decoded at a reduced size. Only its header claims the size here."""
    content = bytearray(saved("PNG"))
    content[16:24] = (40_000).to_bytes(4, "big") + (30_000).to_bytes(4, "big")
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    error = error_of(write_tree(tmp_path, {"huge.png": bytes(content)}), tmp_path / "val.beton")
    assert error.code == "image-too-large"
    assert "40,000 x 30,000 pixels" in str(error)
