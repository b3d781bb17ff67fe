"""Small betons whose images encode the index of their sample."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rebar.beton import BetonFile, ImagePolicy, write_beton

NUM_CLASSES = 7


def label_of(number: int) -> int:
    return number % NUM_CLASSES


def size_of(number: int) -> tuple[int, int]:
    """Return the (height, width) of an image, which varies with its number."""
    return 20 + number % 5, 24 + 3 * (number % 4)


def plain_image(number: int) -> NDArray[np.uint8]:
    """Return a single-color image that encodes the number: 5 times its two digits in base 50, and 128."""
    image = np.empty((*size_of(number), 3), np.uint8)
    image[:] = 5 * (number // 50), 5 * (number % 50), 128
    return image


def number_of(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Decode the numbers of :func:`plain_image` from images ``[n, height, width, 3]``, also after JPEG compression."""
    digits = np.rint(images.mean(axis=(1, 2)) / 5).astype(np.int64)
    return digits[:, 0] * 50 + digits[:, 1]


def textured_image(number: int) -> NDArray[np.uint8]:
    """Return an image that is smooth enough for JPEG, and asymmetric, so that a flip is visible."""
    height, width = 60 + 13 * (number % 5), 90 - 11 * (number % 4)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 80 * np.sin(x / (5 + c + number % 3) + y / 9) + 40 * x / width for c in range(3)]
    return np.clip(np.stack(waves, axis=-1), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Images:
    """An in-memory source of images."""

    contents: Sequence[NDArray[np.uint8]]

    @property
    def class_names(self) -> Sequence[str]:
        return [f"class {label}" for label in range(NUM_CLASSES)]

    def __len__(self) -> int:
        return len(self.contents)

    def label(self, index: int) -> int:
        return label_of(index)

    def read(self, index: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(self.contents[index]).save(file, "PNG")
        return file.getvalue()

    def name(self, index: int) -> str:
        return f"image {index}"


def write(path: Path, contents: Sequence[NDArray[np.uint8]], policy: ImagePolicy) -> BetonFile:
    order = np.arange(len(contents))
    write_beton(Images(contents), path, policy=policy, order=order, progress=False, chunk_size=1000)
    return BetonFile.open(path)


WriteBeton = Callable[..., BetonFile]


@pytest.fixture
def write_numbers(tmp_path: Path) -> WriteBeton:
    """Return a function that writes a beton of ``count`` numbered images: ``write_numbers(count, mode="raw")``."""

    def make(count: int, mode: str = "raw") -> BetonFile:
        policy = ImagePolicy(write_mode=mode)  # type: ignore[arg-type]
        return write(tmp_path / f"{mode}_{count}.beton", [plain_image(number) for number in range(count)], policy)

    return make


@pytest.fixture(scope="session")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> BetonFile:
    """103 numbered images, half of them JPEGs, half raw."""
    path = tmp_path_factory.mktemp("betons") / "numbers.beton"
    return write(path, [plain_image(number) for number in range(103)], ImagePolicy(write_mode="proportion"))


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> BetonFile:
    """Twelve raw images of noise."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, textured_image(number).shape, np.uint8) for number in range(12)]
    return write(tmp_path_factory.mktemp("betons") / "noise.beton", images, ImagePolicy(write_mode="raw"))


@pytest.fixture(scope="session")
def textures(tmp_path_factory: pytest.TempPathFactory) -> BetonFile:
    """Twelve textured JPEGs of several sizes."""
    path = tmp_path_factory.mktemp("betons") / "textures.beton"
    return write(path, [textured_image(number) for number in range(12)], ImagePolicy())


@pytest.fixture(scope="session")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> BetonFile:
    """512 JPEGs of ImageNet's usual size."""
    images = [cv2.resize(textured_image(number), (500, 375)) for number in range(512)]
    return write(tmp_path_factory.mktemp("betons") / "large.beton", images, ImagePolicy())
