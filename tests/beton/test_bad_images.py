"""Images of every odd and bad kind, made for real, through the command line."""

import contextlib
import io
import json
import re
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
from tests.conftest import REPOSITORY
from tests.jpeg.images import encode, photograph

IMAGE = photograph(60, 80)
SEVEN = encode(photograph(90, 120), quality=85)


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved("JPEG", exif=exif.tobytes(), quality=80)


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE[..., 0].astype(np.uint16) << 8).save(buffer, "PNG")
    return buffer.getvalue()


def arithmetic() -> bytes:
    """A frame whose marker says arithmetic coding: what neither decoder takes."""
    return bytes(SEVEN).replace(b"\xff\xc0", b"\xff\xcb", 1)


def twelve_bits() -> bytes:
    content = bytearray(bytes(SEVEN).replace(b"\xff\xc0", b"\xff\xc1", 1))
    content[content.index(b"\xff\xc1") + 4] = 12
    return bytes(content)


GOOD: dict[str, tuple[bytes, tuple[int, int], str | None]] = {  # file -> content, stored width and height, kind
    "plain.JPEG": (saved("JPEG", quality=80), (80, 60), None),
    "gray.JPEG": (saved("JPEG", "L", quality=80), (80, 60), "grayscale"),
    "cmyk.JPEG": (saved("JPEG", "CMYK"), (80, 60), "CMYK"),
    "progressive.JPEG": (saved("JPEG", progressive=True, quality=80), (80, 60), "progressive"),
    "turned.JPEG": (turned(), (60, 80), "turned upright"),
    "png.JPEG": (saved("PNG"), (80, 60), "PNG named .JPEG"),
    "bmp.JPEG": (saved("BMP"), (80, 60), "BMP named .JPEG"),
    "webp.JPEG": (saved("WEBP", lossless=True), (80, 60), "WEBP named .JPEG"),
    "gif.JPEG": (saved("GIF"), (80, 60), "GIF named .JPEG"),
    "deep.png": (sixteen_bits(), (80, 60), "16 bits"),
    "alpha.png": (saved("PNG", "RGBA"), (80, 60), "transparency"),
    "dot.JPEG": (bytes(encode(photograph(1, 1))), (1, 1), None),
    "rest.JPEG": (saved("JPEG", quality=80) + b"more bytes behind the end", (80, 60), None),
}
BAD: dict[str, tuple[bytes, str]] = {
    "empty.JPEG": (b"", "is empty"),
    "text.JPEG": (b"<html>404</html>", "no kind of image"),
    "header.JPEG": (bytes(SEVEN[:100]), "cannot be decoded"),
    "arithmetic.JPEG": (arithmetic(), "cannot be decoded"),
    "twelve.JPEG": (twelve_bits(), "cannot be decoded"),
}
CUT = bytes(SEVEN[: SEVEN.size * 2 // 3])


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    (root / "tree" / "n0").mkdir(parents=True)
    for name, content in files.items():
        (root / "tree" / "n0" / name).write_bytes(content)
    return root / "tree"


def run(tree: Path, target: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    given = ["--split", "val", "--data-dir", str(tree), "--write-path", str(target), "--num-workers", "1", *words]
    command = [sys.executable, str(REPOSITORY / "write_dataset.py"), *given]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def as_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def test_every_odd_kind_comes_out_right(tmp_path: Path) -> None:
    tree, target = write_tree(tmp_path, {name: made[0] for name, made in GOOD.items()}), tmp_path / "val.beton"
    done = run(tree, target, "--jpeg-quality", "95")
    assert done.returncode == 0, done.stderr
    file, report = BetonFile.open(target), json.loads(report_path(target).read_text())
    for index, name in enumerate(sorted(GOOD)):
        content, size, kind = GOOD[name]
        assert (file.widths[index], file.heights[index]) == size, name
        rgb = cv2.imdecode(file.image_bytes(index), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
        if kind in ("turned upright", "16 bits"):
            expected = np.rot90(as_pillow(content), -1) if kind == "turned upright" else IMAGE[..., :1]
        else:
            expected = as_pillow(content)
        assert np.abs(rgb - expected).mean() < (8 if name == "gif.JPEG" else 5), name
        if kind is not None:
            assert report["kinds"][kind] == {"count": 1, "names": [str(tree / "n0" / name)]}
            assert f"1 {kind}" in done.stdout
    assert report["passed_through"] == 5
    assert report["encoded"] == len(GOOD) - 5


@pytest.mark.parametrize("name", [*BAD, "cut.JPEG"])
def test_a_bad_one_stops_the_writing_by_name(tmp_path: Path, name: str) -> None:
    content, reason = BAD.get(name, (CUT, "truncated"))
    tree, target = write_tree(tmp_path, {"a.JPEG": bytes(SEVEN), name: content}), tmp_path / "val.beton"
    done = run(tree, target)
    assert done.returncode == 1
    assert re.search(f"error: .*n0/{name}: .*{reason}.*--on-bad-image skip or repair", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


@pytest.mark.parametrize("policy", ["skip", "repair"])
def test_bad_ones_are_left_out_or_repaired_and_listed(tmp_path: Path, policy: str) -> None:
    files = {"good.JPEG": bytes(SEVEN), "cut.JPEG": CUT, **{name: made[0] for name, made in BAD.items()}}
    tree, target = write_tree(tmp_path, files), tmp_path / "val.beton"
    done = run(tree, target, "--on-bad-image", policy)
    assert done.returncode == 0, done.stderr
    repaired = int(policy == "repair")
    assert f"bad       {repaired} repaired, {len(BAD) + 1 - repaired} left out" in done.stdout
    report, file = json.loads(report_path(target).read_text()), BetonFile.open(target)
    assert len(file) == 1 + repaired
    listed = {Path(bad["name"]).name: bad["reason"] for bad in report["skipped"]}
    assert listed.keys() == BAD.keys() | (set() if repaired else {"cut.JPEG"})
    assert all(reason in listed[name] for name, (_, reason) in BAD.items())
    if repaired:
        assert [Path(bad["name"]).name for bad in report["repaired"]] == ["cut.JPEG"]
        assert (file.heights[0], file.widths[0]) == (90, 120)
        whole, found = (
            cv2.imdecode(np.asarray(jpeg), cv2.IMREAD_COLOR)[:40].astype(int) for jpeg in (SEVEN, file.image_bytes(0))
        )
        assert np.abs(whole - found).mean() < 5


def test_where_all_are_bad_there_is_no_file(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, {name: made[0] for name, made in BAD.items()})
    done = run(tree, tmp_path / "val.beton", "--on-bad-image", "skip")
    assert done.returncode == 1
    assert "all images are bad" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def gray_jpeg(width: int, height: int) -> bytes:
    """Middle gray above, darker below, written by hand: every row of blocks a restart segment, each block DC alone."""
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
    across, down = -(-width // 8), -(-height // 8)
    # The standard luma tables: DC category 0 is 00, end of block 1010; category 6 is 1110.
    flat = "001010"
    dark = "1110" + "000000" + "1010"
    row = {False: flat * across, True: dark + flat * (across - 1)}
    packed = {key: _pack(bits) for key, bits in row.items()}
    rows = b"".join(packed[number >= down // 2] + bytes([0xFF, 0xD0 + number % 8]) for number in range(down))
    interval = b"\xff\xdd\x00\x04" + across.to_bytes(2, "big")
    length = int.from_bytes(scan[:2], "big")
    return frame + interval + b"\xff\xda" + scan[:length] + rows[:-2] + b"\xff\xd9"


def _pack(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")


def test_a_gigapixel_jpeg_takes_little_memory(tmp_path: Path) -> None:
    tree, target = write_tree(tmp_path, {"huge.JPEG": gray_jpeg(40_000, 30_000)}), tmp_path / "val.beton"
    given = ["--split", "val", "--data-dir", str(tree), "--write-path", str(target), "--num-workers", "1"]
    process = psutil.Popen([sys.executable, str(REPOSITORY / "write_dataset.py"), *given], stdout=subprocess.PIPE)
    peak = watch(process, lambda member: member.memory_info().rss)
    assert process.returncode == 0
    file = BetonFile.open(target)
    assert (file.widths[0], file.heights[0]) == (500, 375)
    rgb = cv2.imdecode(file.image_bytes(0), cv2.IMREAD_COLOR)
    assert rgb[:180].mean() > rgb[195:].mean() + 10
    assert peak < 700e6


def watch(process: psutil.Popen, memory: Callable[[psutil.Process], int]) -> int:
    """The largest memory of a process or one of its descendants until it ends."""
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max(peak, *(memory(member) for member in [process, *process.children(recursive=True)]))
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(0.02)
    return peak


def test_a_gigapixel_png_is_bad(tmp_path: Path) -> None:
    """Its header says so; a PNG cannot be decoded at a reduced size."""
    content = bytearray(saved("PNG"))
    content[16:24] = (40_000).to_bytes(4, "big") + (30_000).to_bytes(4, "big")
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    done = run(write_tree(tmp_path, {"huge.png": bytes(content)}), tmp_path / "val.beton")
    assert done.returncode == 1
    assert "40,000 x 30,000 pixels, more than 178,956,970, which would take too much memory" in done.stderr
