"""A small folder of class folders with photograph-like images, and .beton files written from it."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from rebar.beton import BetonFile, ImagePolicy, write_beton
from rebar.beton.sidecar import sidecar_path
from rebar.sources import ImageFolder


def synthetic_photograph(number: int, height: int, width: int) -> np.ndarray:
    """Return an RGB image, uint8 ``[height, width, 3]``, with gradients, edges and noise, different for each number."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width]
    planes = [127 + 90 * np.sin(x / (9 + 3 * c + number % 7)) * np.cos(y / (11 + number % 5)) for c in range(3)]
    image = np.stack(planes, axis=-1) + rng.normal(0, 8, (height, width, 3))
    image[height // 4 : height // 2, width // 4 : width // 2] += 60
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with eight JPEGs each, of many sizes, some larger than 200 pixels."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(24):
        folder = root / f"n0{number // 8}"
        folder.mkdir(exist_ok=True)
        height, width = (int(side) for side in rng.integers(40, 320, 2))
        bgr = synthetic_photograph(number, height, width)[..., ::-1]
        assert cv2.imwrite(str(folder / f"image_{number:02}.JPEG"), bgr)
    return root


@pytest.fixture(scope="session")
def beton(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> BetonFile:
    """``image_tree`` as a .beton file of JPEGs, longer side at most 200 pixels, shuffled."""
    source = ImageFolder(image_tree)
    path = tmp_path_factory.mktemp("beton") / "train.beton"
    order = np.random.default_rng(1).permutation(len(source))
    policy = ImagePolicy(max_resolution=200)
    write_beton(source, path, policy=policy, order=order, num_workers=2, chunk_size=5, progress=False)
    return BetonFile.open(path)


@pytest.fixture
def copied(beton: BetonFile, tmp_path: Path) -> Path:
    """A copy of ``beton`` and its sidecar, for tests that damage it."""
    path = tmp_path / "copy.beton"
    shutil.copy(beton.path, path)
    shutil.copy(sidecar_path(beton.path), sidecar_path(path))
    return path


def flip_bit(path: Path, offset: int) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
