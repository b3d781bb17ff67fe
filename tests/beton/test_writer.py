"""write_beton: FFCV reads its files, their bytes are deterministic, and errors leave no files."""

import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from rebar.beton import BetonFile, ImagePolicy, write_beton
from rebar.beton.format import MIN_PAGE_SIZE, MODE_JPG, MODE_RAW
from rebar.beton.sidecar import sidecar_path
from rebar.errors import RebarError
from rebar.sources import ImageFolder


@dataclass(frozen=True)
class OneImage:
    """A source that repeats one image; reading the image ``kill_at`` kills the process."""

    content: bytes
    count: int = 300
    kill_at: int = -1
    class_names: Sequence[str] = ("only",)

    def __len__(self) -> int:
        return self.count

    def label(self, index: int) -> int:
        return 0

    def read(self, index: int) -> bytes:
        if index == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.content

    def name(self, index: int) -> str:
        return f"image {index}"


@pytest.fixture(scope="module")
def one_image(image_tree: Path) -> bytes:
    return next(image_tree.glob("*/*")).read_bytes()


def write(source: object, path: Path, **options: object) -> BetonFile:
    settings = {"policy": ImagePolicy(), "order": np.arange(len(source)), "num_workers": 2, "progress": False}
    write_beton(source, path, **{**settings, **options})
    return BetonFile.open(path)


def as_rgb(file: BetonFile, index: int) -> np.ndarray:
    if file.modes[index] == MODE_RAW:
        return file.image_bytes(index).reshape(file.heights[index], file.widths[index], 3)
    return cv2.cvtColor(cv2.imdecode(file.image_bytes(index), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_write_beton_stores_images_and_labels_in_order(image_tree: Path, tmp_path: Path) -> None:
    source = ImageFolder(image_tree)
    order = np.random.default_rng(3).permutation(len(source))[:15]
    path = tmp_path / "raw.beton"
    policy = ImagePolicy(max_resolution=0, write_mode="raw")
    report = write_beton(source, path, policy=policy, order=order, num_workers=2, chunk_size=4, progress=False)
    file = BetonFile.open(path)
    assert report.num_samples == len(file) == 15
    assert report.bytes == path.stat().st_size
    assert report.image_bytes == file.sizes.sum()
    assert np.array_equal(report.class_counts, np.bincount(file.labels, minlength=3))
    for sample, index in enumerate(order):
        assert file.labels[sample] == source.label(index)
        with Image.open(source.name(index)) as image:
            assert np.array_equal(as_rgb(file, sample), np.array(image))


def test_write_beton_bytes_do_not_depend_on_workers_or_chunks(image_tree: Path, tmp_path: Path) -> None:
    source = ImageFolder(image_tree)
    policy = ImagePolicy(max_resolution=100, write_mode="proportion", seed=9)
    contents = set()
    for number, (num_workers, chunk_size) in enumerate([(1, 100), (1, 1), (3, 2)]):
        path = tmp_path / f"{number}.beton"
        write(source, path, policy=policy, num_workers=num_workers, chunk_size=chunk_size)
        contents.add((path.read_bytes(), sidecar_path(path).read_bytes()))
    assert len(contents) == 1


def test_write_beton_places_no_image_across_a_page_boundary(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 413, 3), np.uint8)
    content = cv2.imencode(".bmp", noise)[1].tobytes()
    policy = ImagePolicy(write_mode="raw")
    file = write(OneImage(content, 12), tmp_path / "a.beton", policy=policy, page_size=MIN_PAGE_SIZE)
    first, last = file.offsets // MIN_PAGE_SIZE, (file.offsets + file.sizes - 1) // MIN_PAGE_SIZE
    assert np.array_equal(first, last)
    assert np.array_equal(np.unique(first, return_counts=True)[1], [3, 3, 3, 3])
    assert all(np.array_equal(as_rgb(file, index), noise[..., ::-1]) for index in range(12))


@pytest.mark.parametrize("count", [1, 100])
def test_estimate_of_equal_images_is_exact(tmp_path: Path, count: int) -> None:
    content = cv2.imencode(".png", np.zeros((500, 413, 3), np.uint8))[1].tobytes()
    order, policy = np.arange(count), ImagePolicy(write_mode="raw")
    options = {"policy": policy, "order": order, "page_size": MIN_PAGE_SIZE, "progress": False}
    report = write_beton(OneImage(content, count), tmp_path / "a.beton", **options)
    assert report.expected.bytes == report.bytes == (tmp_path / "a.beton").stat().st_size
    assert report.expected.num_sampled == min(count, 32)


def test_stock_ffcv_reads_the_file(image_tree: Path, tmp_path: Path) -> None:
    """Compares pixels and labels of FFCV's loader, with the OS cache and with its own page cache."""
    pytest.importorskip("ffcv")
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.decoders import CenterCropRGBImageDecoder
    from ffcv.loader import OrderOption

    from tests.loading.ffcv.stock_ffcv import Loader

    policy = ImagePolicy(write_mode="proportion", max_resolution=160)
    order = np.random.default_rng(0).permutation(24)
    file = write(ImageFolder(image_tree), tmp_path / "a.beton", policy=policy, order=order)
    assert set(file.modes) == {MODE_JPG, MODE_RAW}
    side = 64
    decoder = CenterCropRGBImageDecoder((side, side), 1.0)
    for os_cache in (True, False):
        batches = Loader(
            str(file.path),
            batch_size=8,
            num_workers=1,
            os_cache=os_cache,
            order=OrderOption.SEQUENTIAL,
            pipelines={"image": [decoder], "label": [IntDecoder()]},
        )
        seen = 0
        for images, labels in batches:
            for image, label in zip(np.array(images), np.array(labels), strict=True):
                rgb = as_rgb(file, seen)
                crop = min(rgb.shape[:2])
                top, left = ((length - crop) // 2 for length in rgb.shape[:2])
                square = rgb[top : top + crop, left : left + crop]
                expected = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
                # FFCV has its own OpenCV and decodes JPEGs with the fast DCT.
                tolerance = 8 if file.modes[seen] == MODE_JPG else 1
                assert np.abs(image.astype(int) - expected).max() <= tolerance
                assert label.item() == file.labels[seen]
                seen += 1
        assert seen == len(file)


class TestErrorsLeaveNoFiles:
    """After any error, an existing file is unchanged and there are no other files."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "a.beton").write_bytes(b"existing")
        return tmp_path

    def check(self, folder: Path, source: object, code: str, message: str = "", **options: object) -> None:
        with pytest.raises(RebarError) as raised:
            write(source, folder / "a.beton", **options)
        assert raised.value.code == code
        assert message in str(raised.value)
        assert [path.name for path in folder.iterdir()] == ["a.beton"]
        assert (folder / "a.beton").read_bytes() == b"existing"

    def test_corrupt_image_leaves_no_files(self, image_tree: Path, folder: Path, tmp_path_factory) -> None:
        tree = shutil.copytree(image_tree, tmp_path_factory.mktemp("corrupt") / "tree")
        corrupt = tree / "n01" / "image_12.JPEG"
        corrupt.write_bytes(corrupt.read_bytes()[:1500])
        self.check(folder, ImageFolder(tree), "image-undecodable", "n01/image_12.JPEG")

    def test_deleted_image_leaves_no_files(self, image_tree: Path, folder: Path, tmp_path_factory) -> None:
        tree = shutil.copytree(image_tree, tmp_path_factory.mktemp("deleted") / "tree")
        source = ImageFolder(tree)
        (tree / "n02" / "image_20.JPEG").unlink()
        self.check(folder, source, "image-unreadable", "image_20.JPEG")

    def test_killed_worker_leaves_no_files(self, one_image: bytes, folder: Path) -> None:
        self.check(folder, OneImage(one_image, kill_at=151), "worker-died", "SIGKILL", chunk_size=10)

    def test_image_larger_than_a_page_leaves_no_files(self, folder: Path) -> None:
        content = cv2.imencode(".png", np.zeros((1000, 1000, 3), np.uint8))[1].tobytes()
        options = {"policy": ImagePolicy(1000, write_mode="raw"), "page_size": MIN_PAGE_SIZE}
        self.check(folder, OneImage(content, 3), "image-too-large", "image 0: takes 3,000,000 bytes", **options)

    def test_too_little_space_leaves_no_files(self, one_image, folder, monkeypatch) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
        self.check(folder, OneImage(one_image), "disk-full")

    def test_source_without_images_leaves_no_files(self, one_image: bytes, folder: Path) -> None:
        self.check(folder, OneImage(one_image, 0), "write-no-images")

    @pytest.mark.parametrize("options", [{"page_size": 3 << 20}, {"order": np.array([300])}])
    def test_invalid_arguments_leave_no_files(self, one_image: bytes, folder: Path, options: dict) -> None:
        with pytest.raises(ValueError, match=r"page_size|order"):
            write(OneImage(one_image), folder / "a.beton", **options)
        assert [path.name for path in folder.iterdir()] == ["a.beton"]


def test_write_beton_refuses_a_missing_folder(one_image: bytes, tmp_path: Path) -> None:
    with pytest.raises(RebarError, match="absent") as raised:
        write(OneImage(one_image), tmp_path / "absent" / "a.beton")
    assert raised.value.code == "write-target-invalid"
