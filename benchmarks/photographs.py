"""Create a folder of photographs for benchmarks: crops of wallpapers from Debian packages, with ImageNet's sizes.

    apt-get download plasma-workspace-wallpapers mate-backgrounds
    for package in *.deb; do dpkg -x $package wallpapers; done
    python benchmarks/photographs.py --wallpapers wallpapers --out photographs --count 400

The output is an image folder, ``photographs/<wallpaper>/<number>.jpg``, with one class per wallpaper. The long side is
500 pixels and the JPEG quality 90. The same packages always give the same images.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

LONG_SIDE = 500
QUALITY = 90
SHAPES = (
    (375, 500),
    (375, 500),
    (333, 500),
    (500, 375),
    (500, 333),
    (500, 500),
)  # height, width, by frequency
_BYTES_PER_PIXEL = (0.10, 0.45)  # excludes flat sky, drawings and noise; ImageNet's average is about 0.2
_WINDOWS = (1, 2, 3)  # a crop's long side, in multiples of LONG_SIDE
_SIZE_NAME = re.compile(r"\d+x\d+")
_TRIES = 40  # per image


def find_wallpapers(folder: Path) -> list[Path]:
    """Return the JPEG files below ``folder``, sorted; only the largest if a wallpaper comes in several sizes."""
    largest: dict[tuple[Path, str], Path] = {}
    for path in sorted(folder.rglob("*.jp*g")):
        image = (path.parent, "" if _SIZE_NAME.fullmatch(path.stem) else path.stem)
        if image not in largest or path.stat().st_size > largest[image].stat().st_size:
            largest[image] = path
    return list(largest.values())


def windows(wallpapers: list[Path], count: int, seed: int = 0) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield the class name and JPEG of up to ``count`` crops, the same number from each wallpaper."""
    for number, path in enumerate(wallpapers):
        rng = np.random.default_rng((seed, number))
        image: NDArray[Any] | None = cv2.imread(str(path))
        target = count * (number + 1) // len(wallpapers) - count * number // len(wallpapers)
        found = 0  # a wallpaper that is mostly sky may give fewer
        for _ in range(_TRIES * target):
            if image is None or found == target:
                break
            jpeg = _window(image, rng)
            if jpeg is not None:
                found += 1
                yield f"{number:03d}_{path.stem}", jpeg


def _window(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8] | None:
    """Return one crop, or None if it does not fit or does not look like a photograph."""
    height, width = SHAPES[rng.integers(len(SHAPES))]
    scale = _WINDOWS[rng.integers(len(_WINDOWS))]
    crop_height, crop_width = height * scale, width * scale
    if crop_height > image.shape[0] or crop_width > image.shape[1]:
        return None
    top, left = rng.integers(0, image.shape[0] - crop_height + 1), rng.integers(0, image.shape[1] - crop_width + 1)
    view = cv2.resize(
        image[top : top + crop_height, left : left + crop_width], (width, height), interpolation=cv2.INTER_AREA
    )
    jpeg = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].ravel()
    low, high = _BYTES_PER_PIXEL
    return jpeg if low <= jpeg.size / (height * width) <= high else None


def build(folder: Path, count: int, wallpapers: Path) -> Path:
    """Write the image folder, unless it exists already, and return it."""
    sources = find_wallpapers(wallpapers)
    if not sources:
        raise FileNotFoundError(f"no wallpapers below {wallpapers}: see the top of {__file__} for how to get them")
    done = folder / f"complete_{count}"
    if done.exists():
        return folder
    for number, (name, jpeg) in enumerate(windows(sources, count)):
        path = folder / name / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg.tobytes())
    done.touch()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wallpapers", type=Path, default=Path("/usr/share"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400)
    arguments = parser.parse_args()
    build(arguments.out, arguments.count, arguments.wallpapers)


if __name__ == "__main__":
    main()
