"""--verify, --info and --stats, as people run them: on good files, and on files wrong in every way."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from rebar.beton import BetonError, BetonFile, ImagePolicy, write_beton
from rebar.beton.format import ALLOCATION, FIELD_DESCRIPTOR, HEADER
from rebar.beton.inspect import contact_sheet
from rebar.beton.pages import SAMPLE
from rebar.beton.sidecar import sidecar_path
from rebar.beton.stored_image import decode_image
from rebar.beton.verify import verify
from rebar.errors import RebarError
from rebar.loading import CenterCrop, CorruptSampleError, Loader
from rebar.sources import ImageFolder
from tests.conftest import REPOSITORY
from write_dataset import main

TABLES_START = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize  # of the samples' records


def change(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(REPOSITORY / "write_dataset.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_good_file(copied: Path) -> None:
    done = run("--verify", copied)
    assert done.returncode == 0, done.stderr
    assert "24 in 3 classes, 8 to 8 a class" in done.stdout
    assert [line.split() for line in done.stdout.splitlines()[1:4]] == [["8", "n00"], ["8", "n01"], ["8", "n02"]]
    assert "every page, offset, image, label and checksum checked" in done.stdout


def test_what_is_wrong_is_named(copied: Path, beton: BetonFile) -> None:
    place = int(beton.offsets[5])
    change(copied, place + 700, b"\xff\xd9\xff\xd9")
    done = run("--verify", copied)
    assert done.returncode == 1
    assert (
        f"page 1, from byte {beton.page_size:,} on (samples 0 to 23): its checksum is not the sidecar's" in done.stdout
    )
    assert f"sample 5: its image, at byte {place:,}, cannot be decoded" in done.stdout
    assert "2 things are wrong with it" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_tables_without_a_sidecar(copied: Path, beton: BetonFile) -> None:
    sidecar_path(copied).unlink()
    samples = np.fromfile(copied, SAMPLE, len(beton), offset=TABLES_START)
    allocations = np.fromfile(copied, ALLOCATION, len(beton), offset=copied.stat().st_size - 24 * len(beton))
    samples["f1"][3] = -2
    samples["f0"]["width"][7] = 17
    allocations["size"][9] += 10
    change(copied, TABLES_START, samples.tobytes())
    change(copied, copied.stat().st_size - allocations.nbytes, allocations.tobytes())
    problems = verify(copied).problems
    assert any("sample 3: its label is -2" in problem for problem in problems)
    assert any("sample 7: its image" in problem and "but the table says" in problem for problem in problems)
    assert any("images overlap" in problem for problem in problems)


def test_a_file_of_stock_ffcv(tmp_path: Path) -> None:
    """Verified, and written again by us: the same pixels and labels."""
    writer = pytest.importorskip("ffcv.writer")
    from ffcv.fields import IntField, RGBImageField

    class Numbers:
        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return np.random.default_rng(index).integers(0, 256, (30, 40 + index, 3), np.uint8), index % 4

    path = tmp_path / "stock.beton"
    fields = {"image": RGBImageField(write_mode="proportion", compress_probability=0.5), "label": IntField()}
    writer.DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Numbers())
    found = verify(path)
    assert found.problems == []
    assert found.class_counts.tolist() == [3, 2, 2, 2]


def test_info_draws_a_sheet(copied: Path) -> None:
    done = run("--info", copied)
    assert done.returncode == 0, done.stderr
    for part in ("24 in 3 classes", "24 JPEG, 0 raw", "n00, n01, n02", "max_resolution 200"):
        assert part in done.stdout
    sheet = cv2.imread(str(copied) + ".png")
    assert np.array_equal(sheet[..., ::-1], contact_sheet(copied))
    assert sheet.shape[1] > 8 * 160
    image = decode_image(BetonFile.open(copied), 0)
    assert np.abs(sheet[60:110, 60:110].mean((0, 1))[::-1] - image.mean((0, 1))).mean() < 60


def test_info_of_a_file_with_corrupt_images(copied: Path, beton: BetonFile) -> None:
    change(copied, int(beton.offsets[0]), bytes(100))
    assert contact_sheet(copied)[10, 10].tolist() == [200, 0, 0]


def test_stats_are_those_of_the_pixels(image_tree: Path, tmp_path: Path) -> None:
    path, source = tmp_path / "raw.beton", ImageFolder(image_tree)
    policy = ImagePolicy(max_resolution=100, write_mode="raw")
    write_beton(source, path, policy=policy, order=np.arange(len(source)), progress=False)
    file = BetonFile.open(path)
    images = [decode_image(file, index).reshape(-1, 3) / 255 for index in range(len(file))]
    mean = np.mean([image.mean(0) for image in images], axis=0)
    squares = np.mean([(image**2).mean(0) for image in images], axis=0)
    main(["--stats", str(path), "--out", str(tmp_path / "stats.json")])
    said = json.loads((tmp_path / "stats.json").read_text())
    np.testing.assert_allclose(said["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(said["std"], np.sqrt(squares - mean**2), atol=1e-6)


def test_mistakes(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(RebarError, match="no such file"):
        main(["--verify", str(tmp_path / "absent.beton")])
    with pytest.raises(RebarError, match="unrecognized arguments"):
        main(["--info", str(copied), "--split", "train"])
    with pytest.raises(RebarError, match="not allowed with"):
        main(["--info", str(copied), "--verify", str(copied)])
    with pytest.raises(RebarError, match="cannot be written"):
        main(["--info", str(copied), "--out", str(tmp_path / "absent" / "a.png")])


@pytest.mark.parametrize("with_sidecar", [True, False])
def test_fuzzed_files(copied: Path, beton: BetonFile, with_sidecar: bool) -> None:
    """Random damage anywhere: verify names it, or refuses the file; the loader gives one clear error, or images."""
    if not with_sidecar:
        sidecar_path(copied).unlink()
    content = copied.read_bytes()
    tables_end, images_end = TABLES_START + 24 * SAMPLE.itemsize, int((beton.offsets + beton.sizes).max())
    used = np.r_[0:tables_end, int(beton.offsets.min()) : images_end, len(content) - 24 * 24 : len(content)]
    rng = np.random.default_rng(int(with_sidecar))
    named = 0
    for number in range(60):
        way = number % 4
        damaged = bytearray(content)
        for place in rng.choice(used, 1 if way == 0 else 20):
            damaged[place] ^= int(rng.integers(1, 256))
        if way == 2:
            damaged = damaged[: int(rng.integers(0, len(damaged)))]
        if way == 3:
            start, length = int(rng.choice(used)), int(rng.integers(1, 5000))
            damaged[start : start + length] = rng.bytes(len(damaged[start : start + length]))
        copied.write_bytes(damaged)
        found = ""
        try:
            found = "\n".join(verify(copied).problems)
        except BetonError as error:
            found = str(error) if str(copied) in str(error) else "unnamed"
        assert found != "unnamed"
        named += bool(found)
        try:
            for images, labels in Loader(copied, 8, num_workers=1, cropper=CenterCrop(), resolution=32):
                assert len(images) == len(labels)
        except (BetonError, CorruptSampleError) as error:
            found = str(error) if str(copied) in str(error) else "unnamed"
        assert found != "unnamed"
    assert named == 60 if with_sidecar else named > 30
