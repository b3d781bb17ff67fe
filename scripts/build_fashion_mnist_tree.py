"""Build a folder of class folders from Fashion-MNIST: small real images in ten classes.

    python scripts/build_fashion_mnist_tree.py --out quickstart_run/tree
    python scripts/build_fashion_mnist_tree.py --out /tmp/small --train-per-class 20 --val-per-class 5

The output is ``train/<class>/*.JPEG`` and ``val/<class>/*.JPEG``. The input is the folder --source, Debian's package
dataset-fashion-mnist, or a download. The output folder appears once it is complete. A complete one is not built again.
"""

import argparse
import gzip
import hashlib
import json
import os
import shutil
import struct
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

CLASSES = (  # digits keep the alphabetical order equal to the order of the labels
    "0_t-shirt",
    "1_trouser",
    "2_pullover",
    "3_dress",
    "4_coat",
    "5_sandal",
    "6_shirt",
    "7_sneaker",
    "8_bag",
    "9_ankle-boot",
)
FILES = {"train": "train", "val": "t10k"}  # split -> prefix of Fashion-MNIST's files
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# The URL of the authors and the checksums in torchvision.
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
MANIFEST = "fashion_mnist.json"
JPEG_QUALITY = 95
IMAGES_PER_TASK = 500


class UserError(Exception):
    """An error that is reported in one line, without a traceback."""


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes: magic number, sizes, values."""
    try:
        data = gzip.decompress(path.read_bytes())
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", data)
    except (OSError, EOFError, struct.error) as error:
        raise UserError(f"{path}: cannot be read: {error}. Download it again.") from None
    values = np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions))
    if magic != 0x800 + dimensions or values.size != np.prod(shape):
        raise UserError(f"{path}: is not a complete IDX file of {dimensions} dimensions. Download it again.")
    return values.reshape(shape)


def read_split(source: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images ``[n, 28, 28]`` and labels ``[n]`` of a split."""
    images = read_idx(source / f"{FILES[split]}-images-idx3-ubyte.gz", dimensions=3)
    labels = read_idx(source / f"{FILES[split]}-labels-idx1-ubyte.gz", dimensions=1)
    if len(images) != len(labels) or labels.max() >= len(CLASSES):
        raise UserError(f"{source}: images and labels do not match. Download the files again.")
    return images, labels


def first_of_each_class(labels: NDArray[np.uint8], per_class: int | None) -> NDArray[np.intp]:
    """Return the indices of the first ``per_class`` images of every class, or of all."""
    kept = [np.flatnonzero(labels == label)[:per_class] for label in range(len(CLASSES))]
    return np.sort(np.concatenate(kept))


def write_images(images: NDArray[np.uint8], paths: list[str]) -> int:
    """Save each image as an RGB JPEG; return their number."""
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).convert("RGB").save(path, "JPEG", quality=JPEG_QUALITY)
    return len(paths)


def split_tasks(
    folder: Path, split: str, source: Path, per_class: int | None
) -> Iterator[tuple[NDArray[np.uint8], list[str]]]:
    """Create the class folders of a split, and yield tasks for the workers: images and their paths."""
    images, labels = read_split(source, split)
    for name in CLASSES:
        (folder / split / name).mkdir(parents=True)
    names = [CLASSES[label] for label in labels]
    kept = first_of_each_class(labels, per_class)
    for start in range(0, len(kept), IMAGES_PER_TASK):
        part = kept[start : start + IMAGES_PER_TASK]
        yield images[part], [str(folder / split / names[i] / f"{names[i]}_{i:05d}.JPEG") for i in part]


def count_images(folder: Path) -> int:
    """Return the number of images in a folder with this layout."""
    return sum(1 for split in FILES for _ in (folder / split).glob("*/*.JPEG"))


def is_complete(out: Path, wanted: dict[str, int | None]) -> bool:
    """Return whether ``out`` is already complete. Raises UserError if it contains something else."""
    if not out.exists() or not any(out.iterdir()):
        return False
    try:
        found = json.loads((out / MANIFEST).read_text())
    except (OSError, ValueError):
        raise UserError(f"{out}: contains other files. Choose another --out.") from None
    images = found.pop("images", None)
    if found != wanted:
        raise UserError(f"{out}: contains another selection ({found}). Remove it, or choose another --out.")
    return count_images(out) == images


def build_tree(source: Path, out: Path, wanted: dict[str, int | None]) -> int:
    """Write the tree to a temporary folder, and rename it once complete; return the number of images."""
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        tasks = [task for split in FILES for task in split_tasks(partial, split, source, wanted[split])]
        total = sum(len(paths) for _, paths in tasks)
        _refuse_other_files(out, {Path(path).relative_to(partial) for _, paths in tasks for path in paths})
        with (
            ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool,
            tqdm(total=total, unit=" images", disable=None) as bar,
        ):
            for written in pool.map(write_images, *zip(*tasks, strict=True)):
                bar.update(written)
        (partial / MANIFEST).write_text(json.dumps({**wanted, "images": total}) + "\n")
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return total


def _refuse_other_files(out: Path, images: set[Path]) -> None:
    """Raise UserError if an incomplete tree, which is rebuilt, has files that are not part of it."""
    known = images | {Path(MANIFEST)}
    for path in out.rglob("*"):
        if not path.is_dir() and path.relative_to(out) not in known:
            raise UserError(f"{path}: is not part of the dataset. Move it, or choose another --out.")


def download(folder: Path) -> Path:
    """Download Fashion-MNIST's four files (30 MB), verify their checksums, and skip existing ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, md5 in tqdm(MD5.items(), desc="downloading Fashion-MNIST", unit=" files"):
        path = folder / name
        if path.exists():
            continue
        try:
            with urllib.request.urlopen(URL + name, timeout=30) as response:
                data = response.read()
        except OSError as error:
            raise UserError(
                f"{URL + name}: download failed: {error}. Run apt-get install dataset-fashion-mnist, or pass a folder "
                "with the four files as --source."
            ) from None
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise UserError(f"{URL + name}: does not have the expected checksum. Try again later.")
        partial = path.with_suffix(".partial")
        partial.write_bytes(data)
        partial.rename(path)
    return folder


def find_source(given: Path | None) -> Path:
    """Return the folder of the four files: the given one, Debian's, or a download."""
    if given is not None:
        if missing := [name for name in MD5 if not (given / name).exists()]:
            raise UserError(f"{given}: {', '.join(missing)} not found. Download the files.")
        return given
    if DEBIAN_FOLDER.is_dir():
        return DEBIAN_FOLDER
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return download(cache / "rebar" / "fashion-mnist")


def positive(text: str) -> int:
    """Parse a positive integer, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> None:
    """Build the tree given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--train-per-class", type=positive, metavar="N", help="default: all, 6,000")
    parser.add_argument("--val-per-class", type=positive, metavar="N", help="default: all, 1,000")
    parser.add_argument("--source", type=Path, help="folder with Fashion-MNIST's four .gz files")
    options = parser.parse_args()
    wanted = {"train": options.train_per_class, "val": options.val_per_class}
    try:
        if is_complete(options.out, wanted):
            print(f"{options.out}: already complete")
            return
        images = build_tree(find_source(options.source), options.out, wanted)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.out}: {images:,} images in {len(CLASSES)} classes")


if __name__ == "__main__":
    main()
