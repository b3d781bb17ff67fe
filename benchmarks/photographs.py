"""Real photographs for benchmarks: windows of wallpapers that Debian packages, shaped as ImageNet's images.

    apt-get download plasma-workspace-wallpapers mate-backgrounds
    for package in *.deb; do dpkg -x $package wallpapers; done
    python benchmarks/photographs.py --wallpapers wallpapers --out photographs --count 400

writes ``photographs/<wallpaper>/<number>.jpg``: an image-folder tree, one class a wallpaper, long side 500
pixels, JPEG quality 90, the same images for the same packages every time.
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
SHAPES = ((375, 500), (375, 500), (333, 500), (500, 375), (500, 333), (500, 500))  # height, width; as often as there
_BYTES_PER_PIXEL = (0.10, 0.45)  # flat sky and drawings below, noise above: ImageNet's average is about 0.2
_WINDOWS = (1, 2, 3)  # a window's long side, in multiples of LONG_SIDE
_SIZE_NAME = re.compile(r"\d+x\d+")
_TRIES = 40  # for each image wanted


def find_wallpapers(folder: Path) -> list[Path]:
    """The JPEG files below ``folder``, by name; of one that is there in many sizes only the largest."""
    largest: dict[tuple[Path, str], Path] = {}
    for path in sorted(folder.rglob("*.jp*g")):
        image = (path.parent, "" if _SIZE_NAME.fullmatch(path.stem) else path.stem)
        if image not in largest or path.stat().st_size > largest[image].stat().st_size:
            largest[image] = path
    return list(largest.values())


def windows(wallpapers: list[Path], count: int, seed: int = 0) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """``(class name, JPEG bytes)`` of up to ``count`` views, equally many of each wallpaper."""
    for number, path in enumerate(wallpapers):
        rng = np.random.default_rng((seed, number))
        image: NDArray[Any] | None = cv2.imread(str(path))
        wanted = count * (number + 1) // len(wallpapers) - count * number // len(wallpapers)
        found = 0  # an image of nothing but sky may give fewer
        for _ in range(_TRIES * wanted):
            if image is None or found == wanted:
                break
            jpeg = _window(image, rng)
            if jpeg is not None:
                found += 1
                yield f"{number:03d}_{path.stem}", jpeg


def _window(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8] | None:
    """One view, or None where it does not fit or does not look like a photograph."""
    height, width = SHAPES[rng.integers(len(SHAPES))]
    scale = _WINDOWS[rng.integers(len(_WINDOWS))]
    high, wide = height * scale, width * scale
    if high > image.shape[0] or wide > image.shape[1]:
        return None
    top, left = rng.integers(0, image.shape[0] - high + 1), rng.integers(0, image.shape[1] - wide + 1)
    view = cv2.resize(image[top : top + high, left : left + wide], (width, height), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].ravel()
    low, high_limit = _BYTES_PER_PIXEL
    return jpeg if low <= jpeg.size / (height * width) <= high_limit else None


def build(folder: Path, count: int, wallpapers: Path) -> Path:
    """Write the tree into ``folder``, unless it is there already, and give back ``folder``."""
    sources = find_wallpapers(wallpapers)
    if not sources:
        raise FileNotFoundError(f"no wallpapers below {wallpapers}: see the top of {__file__} for where to get them")
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
