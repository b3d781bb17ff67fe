"""Decoding random crops on one core: ours against libjpeg-turbo's whole decode, crop and cv2 INTER_AREA,
and against stock FFCV's own functions, where FFCV is installed.

    python benchmarks/decode.py PHOTOGRAPHS --json decode.json

PHOTOGRAPHS is any folder of JPEG files (see photographs.py). Each is re-encoded at its size, 4:2:0, quality 90,
with restart markers and without; all methods decode the same RandomResizedCrop boxes, a slice of the
images at a time in turn, so that a noisy machine slows all. A ratio is the median over the rounds.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.crop_decoder import CropDecoder
from rebar.jpeg.turbojpeg import decode_rgb

QUALITY = 90
SLICE = 25  # images a turn
_STOCK_BUFFER = np.empty(1 << 24, np.uint8)  # FFCV too keeps one


@dataclass(frozen=True)
class Images:
    """Concatenated JPEGs: ``data`` uint8, where each starts and how long it is, their sizes in pixels."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True)
class Crops:
    """``boxes`` int64 ``[n, 4]`` (top, left, height, width) and ``flips`` bool ``[n]``."""

    boxes: NDArray[np.int64]
    flips: NDArray[np.bool_]


def random_resized_crops(images: Images, seed: int = 0) -> Crops:
    """As torchvision's and FFCV's RandomResizedCrop draw them: 8 to 100 % of the area, aspect 3/4 to 4/3."""
    rng = np.random.default_rng(seed)
    boxes = []
    for image_height, image_width in zip(images.heights, images.widths, strict=True):
        height, width = image_height, image_width
        for _ in range(10):
            area = image_height * image_width * rng.uniform(0.08, 1)
            aspect = np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
            high, wide = int(np.rint(np.sqrt(area / aspect))), int(np.rint(np.sqrt(area * aspect)))
            if 0 < high <= image_height and 0 < wide <= image_width:
                height, width = high, wide
                break
        top, left = rng.integers(0, image_height - height + 1), rng.integers(0, image_width - width + 1)
        boxes.append((top, left, height, width))
    return Crops(np.array(boxes, np.int64), rng.random(len(boxes)) < 0.5)


def restart_interval(width: int, aim: int) -> int:
    """The divisor of the MCUs in a row (4:2:0) nearest to ``aim``; 0 for none."""
    across = -(-width // 16)
    return min((d for d in range(1, across + 1) if across % d == 0), key=lambda d: (abs(d - aim), d)) if aim else 0


def read_images(folder: Path, count: int, aim: int) -> Images:
    """The first ``count`` JPEG files below ``folder``, re-encoded with restart markers about every ``aim`` MCUs."""
    jpegs, shapes = [], []
    for path in sorted(folder.rglob("*.[jJ][pP]*[gG]"))[:count]:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            continue
        interval = restart_interval(image.shape[1], aim)
        settings = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
        jpegs.append(cv2.imencode(".jpg", image, settings)[1].ravel())
        shapes.append(image.shape[:2])
    sizes = np.array([jpeg.size for jpeg in jpegs], np.uint64)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.uint64)
    heights, widths = np.array(shapes, np.int64).T
    return Images(np.concatenate(jpegs), offsets, sizes, heights, widths)


def decode_whole(images: Images, crops: Crops, part: slice, out: NDArray[np.uint8]) -> None:
    """The reference, by libturbojpeg and cv2."""
    size = (out.shape[2], out.shape[1])
    for slot, i in enumerate(range(len(images))[part]):
        start = int(images.offsets[i])
        image = decode_rgb(images.data[start : start + int(images.sizes[i])])
        top, left, height, width = crops.boxes[i]
        resized = cv2.resize(image[top : top + height, left : left + width], size, interpolation=cv2.INTER_AREA)
        out[slot] = resized[:, ::-1] if crops.flips[i] else resized


def decode_stock(images: Images, crops: Crops, part: slice, out: NDArray[np.uint8]) -> None:
    """What stock FFCV's RandomResizedCrop decoder and flip call; without its numba loop, which costs little."""
    from ffcv.libffcv import imdecode, resize_crop

    for slot, i in enumerate(range(len(images))[part]):
        start, high, wide = int(images.offsets[i]), int(images.heights[i]), int(images.widths[i])
        jpeg = images.data[start : start + int(images.sizes[i])]
        image = _STOCK_BUFFER[: high * wide * 3].reshape(high, wide, 3)
        imdecode(jpeg, image, high, wide, high, wide, 0, 0, 1, 1, False, False)
        top, left, height, width = (int(edge) for edge in crops.boxes[i])
        resize_crop(image, top, top + height, left, left + width, out[slot])
        if crops.flips[i]:
            out[slot] = out[slot, :, ::-1].copy()


def has_stock() -> bool:
    """Whether FFCV is installed and loads."""
    try:
        import ffcv.libffcv  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def decode_fast(
    decoder: CropDecoder, images: Images, crops: Crops, part: slice, out: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    boxes, flips = crops.boxes[part], crops.flips[part]
    offsets, sizes = images.offsets[part], images.sizes[part]
    return decoder.decode_crops(images.data, offsets, sizes, boxes, flips, out[: len(boxes)])


def measure(images: Images, resolution: int, rounds: int) -> dict[str, Any]:
    """Milliseconds an image of all ways, their ratios to ours, and how much the results differ in grey levels."""
    crops = random_resized_crops(images)
    decoder = CropDecoder(int(images.heights.max()), int(images.widths.max()))
    ours = np.empty((SLICE, resolution, resolution, 3), np.uint8)
    reference = np.empty_like(ours)
    parts = [slice(start, min(start + SLICE, len(images))) for start in range(0, len(images), SLICE)]
    means, largest = [], 0
    for part in parts:
        statuses = decode_fast(decoder, images, crops, part, ours)
        if statuses.any():
            raise RuntimeError(f"statuses {statuses.tolist()}")
        decode_whole(images, crops, part, reference)
        number = part.stop - part.start
        difference = np.abs(ours[:number].astype(np.int16) - reference[:number])
        means += difference.mean(axis=(1, 2, 3)).tolist()
        largest = max(largest, int(difference.max()))
    ways: dict[str, Callable[[slice], object]] = {
        "fast": lambda part: decode_fast(decoder, images, crops, part, ours),
        "whole": lambda part: decode_whole(images, crops, part, reference),
    }
    if has_stock():
        ways["stock"] = lambda part: decode_stock(images, crops, part, reference)
    seconds = {name: np.zeros(rounds) for name in ways}
    for turn in range(rounds):
        for part in parts:
            for name, decode in ways.items():
                begin = time.perf_counter()
                decode(part)
                seconds[name][turn] += time.perf_counter() - begin
    return {
        "resolution": resolution,
        "ratios": {name: float(np.median(seconds[name] / seconds["fast"])) for name in ways},
        "milliseconds": {name: float(seconds[name].min() / len(images) * 1e3) for name in ways},
        "mean_difference": float(np.mean(means)),
        "worst_image_difference": float(np.max(means)),
        "largest_difference": largest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[224, 160])
    parser.add_argument("--intervals", type=int, nargs="+", default=[4, 0], help="MCUs; 0: no restart markers")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    results = []
    for interval in arguments.intervals:
        images = read_images(arguments.photographs, arguments.count, interval)
        print(f"restart markers every {interval} MCUs: {len(images)} images, {images.sizes.mean() / 1e3:.1f} KB")
        for resolution in arguments.resolutions:
            result = measure(images, resolution, arguments.rounds)
            results.append({"interval": interval, "mean_bytes": float(images.sizes.mean()), **result})
            milliseconds, ratios = result["milliseconds"], result["ratios"]
            speeds = ", ".join(f"{name} {milliseconds[name]:.3f} ms ({ratios[name]:.2f}x)" for name in ratios)
            print(
                f"  {resolution} px: {speeds}; difference {result['mean_difference']:.3f} levels on average, "
                f"{result['worst_image_difference']:.3f} in the worst image, {result['largest_difference']} at most"
            )
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "opencv": cv2.__version__}
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
