"""Create the data of the other parts in the background: JPEG kernels, photographs, .beton files, Fashion-MNIST."""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_proof.job import REPOSITORY, Job

SHAPES = ((375, 500), (375, 500), (333, 500), (500, 375), (500, 333), (500, 500))
NUM_CLASSES = 10
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def run(job: Job) -> None:
    """Create each item once. NAME.ready marks a complete one."""
    photos, repeated, validation = (24, 48, 16) if job.rehearse else (600, 12800, 1000)
    kernels = subprocess.Popen(
        [sys.executable, "-c", "from rebar.jpeg.kernel_cache import load_kernel; load_kernel()"], cwd=REPOSITORY
    )
    began = time.monotonic()
    tree = job.work / "photographs"
    done = (job.work / "photographs.ready").exists()
    if not done:
        write_tree(tree / "train", photos, first=0)
        write_tree(tree / "val", max(photos // 3, NUM_CLASSES), first=1_000_000)
        ready(job, "photographs")
    job.add(made="photographs", count=photos, seconds=time.monotonic() - began)
    began = time.monotonic()
    if kernels.wait() != 0:
        raise RuntimeError("the JPEG kernels could not be compiled")
    job.add(made="JPEG kernels, compiled in parallel", seconds=time.monotonic() - began)
    for name, split, count in (("train.beton", "train", repeated), ("val.beton", "val", validation)):
        began = time.monotonic()
        if not (job.work / f"{name}.ready").exists():
            write_repeated(tree / split, job.work / name, count, workers=1 if job.rehearse else 8)
            ready(job, name)
        size = (job.work / name).stat().st_size
        job.add(made=name, count=count, megabytes=size / 1e6, seconds=time.monotonic() - began)
    if not job.rehearse and FASHION_MNIST.exists():
        began = time.monotonic()
        from speedrun import make_data

        make_data(job.work / "speedrun")
        ready(job, "speedrun")
        job.add(made="Fashion-MNIST", seconds=time.monotonic() - began)


def ready(job: Job, name: str) -> None:
    (job.work / f"{name}.ready").touch()


# ------------------------------------------------------------------ photographs


def photograph(number: int) -> bytes:
    """Return a JPEG with a photograph's statistics: 1/f spectrum, edges, little chroma, ImageNet's bytes per pixel."""
    rng = np.random.default_rng(number)
    height, width = SHAPES[rng.integers(len(SHAPES))]
    size = 512
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1 / size
    planes = []
    for strength, slope in ((42, 1.25), (14, 1.5), (14, 1.5)):
        spectrum = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
        plane = np.fft.irfft2(spectrum / frequency**slope, s=(size, size))
        planes.append(strength * plane / plane.std())
    image = np.stack([128 + planes[0], 128 + planes[1], 128 + planes[2]], axis=-1).astype(np.float32)
    for _ in range(rng.integers(4, 12)):  # objects with sharp outlines
        mask = np.zeros((size, size), np.uint8)
        center, axes = rng.integers(0, size, 2), rng.integers(10, 160, 2)
        angle, origin = float(rng.uniform(0, 180)), (0, 360)
        cv2.ellipse(mask, [int(c) for c in center], [int(a) for a in axes], angle, *origin, 1, -1)
        image[mask > 0] = image[mask > 0] * float(rng.uniform(0.3, 1)) + rng.uniform(-40, 80, 3).astype(np.float32)
    bgr = cv2.cvtColor(np.clip(image, 0, 255).astype(np.uint8)[:height, :width], cv2.COLOR_YCrCb2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


def write_tree(folder: Path, count: int, *, first: int) -> None:
    """Write ``count`` photographs as an image folder."""
    for label in range(NUM_CLASSES):
        (folder / f"class_{label}").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(1 if count < 50 else 12) as pool:
        for number, content in enumerate(pool.map(photograph, range(first, first + count), chunksize=4)):
            (folder / f"class_{number % NUM_CLASSES}" / f"{number:05d}.jpg").write_bytes(content)


@dataclasses.dataclass(frozen=True)
class Repeated:
    """A source that repeats the images of a folder up to ``count``."""

    paths: tuple[Path, ...]
    count: int

    @property
    def class_names(self) -> Sequence[str]:
        return [f"class_{label}" for label in range(NUM_CLASSES)]

    def __len__(self) -> int:
        return self.count

    def label(self, index: int) -> int:
        return int(self.paths[index % len(self.paths)].parent.name.partition("_")[2])

    def read(self, index: int) -> bytes:
        return self.paths[index % len(self.paths)].read_bytes()

    def name(self, index: int) -> str:
        return f"{self.paths[index % len(self.paths)]} ({index // len(self.paths)})"


def write_repeated(folder: Path, path: Path, count: int, *, workers: int) -> None:
    """Write ``count`` images to a .beton, repeating the images of the folder evenly."""
    from rebar.beton import ImagePolicy, write_beton

    source = Repeated(tuple(sorted(folder.rglob("*.jpg"))), count)
    order: NDArray[np.int64] = np.arange(count)
    write_beton(source, path, policy=ImagePolicy(), order=order, num_workers=workers, progress=False)
