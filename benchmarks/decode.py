"""Benchmark the decoding of random crops on one core: CropDecoder, full-image decoding with libjpeg-turbo and cv2
INTER_AREA, and FFCV's functions if FFCV is installed.

    python benchmarks/decode.py PHOTOGRAPHS --json decode.json

PHOTOGRAPHS is any folder of JPEG files, such as one written by photographs.py. Each image is re-encoded at its size
with 4:2:0 and quality 90, with and without restart markers. All methods decode the same RandomResizedCrop boxes. They
alternate on small groups of images, so that load on the machine slows all of them. Each ratio is the median over the
rounds.
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
from loader import check_report
from numpy.typing import NDArray

from rebar.cli import run_command
from rebar.jpeg.crop_decoder import CropDecoder
from rebar.jpeg.decode import decode_rgb

QUALITY = 90
GROUP = 25  # images decoded by one method before the next one takes over
_FFCV_BUFFER = np.empty(1 << 24, np.uint8)  # FFCV also reuses one


@dataclass(frozen=True)
class Images:
    """Concatenated JPEGs: ``data`` uint8, the offset and size of each in bytes, and heights and widths in pixels."""

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
    """Draw crops as RandomResizedCrop does: 8 to 100 % of the area, aspect ratio 3/4 to 4/3."""
    rng = np.random.default_rng(seed)
    boxes = []
    for image_height, image_width in zip(images.heights, images.widths, strict=True):
        height, width = image_height, image_width
        for _ in range(10):
            area = image_height * image_width * rng.uniform(0.08, 1)
            aspect = np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
            crop_height, crop_width = int(np.rint(np.sqrt(area / aspect))), int(np.rint(np.sqrt(area * aspect)))
            if 0 < crop_height <= image_height and 0 < crop_width <= image_width:
                height, width = crop_height, crop_width
                break
        top, left = rng.integers(0, image_height - height + 1), rng.integers(0, image_width - width + 1)
        boxes.append((top, left, height, width))
    return Crops(np.array(boxes, np.int64), rng.random(len(boxes)) < 0.5)


def restart_interval(width: int, target: int) -> int:
    """Return the divisor of the MCUs per row (4:2:0) nearest to ``target``; 0 if that is 0."""
    mcus = -(-width // 16)
    divisors = (d for d in range(1, mcus + 1) if mcus % d == 0)
    return min(divisors, key=lambda d: (abs(d - target), d)) if target else 0


def read_images(folder: Path, count: int, target_interval: int) -> Images:
    """Re-encode the first ``count`` JPEGs below ``folder``, with a restart marker per ``target_interval`` MCUs."""
    jpegs, shapes = [], []
    for path in sorted(folder.rglob("*.[jJ][pP]*[gG]"))[:count]:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            continue
        interval = restart_interval(image.shape[1], target_interval)
        settings = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
        jpegs.append(cv2.imencode(".jpg", image, settings)[1].ravel())
        shapes.append(image.shape[:2])
    sizes = np.array([jpeg.size for jpeg in jpegs], np.uint64)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.uint64)
    heights, widths = np.array(shapes, np.int64).T
    return Images(np.concatenate(jpegs), offsets, sizes, heights, widths)


def decode_full(images: Images, crops: Crops, part: slice, out: NDArray[np.uint8]) -> None:
    """Decode full images with libturbojpeg, crop, and resize with cv2."""
    size = (out.shape[2], out.shape[1])
    for slot, i in enumerate(range(len(images))[part]):
        start = int(images.offsets[i])
        image = decode_rgb(images.data[start : start + int(images.sizes[i])])
        top, left, height, width = crops.boxes[i]
        resized = cv2.resize(image[top : top + height, left : left + width], size, interpolation=cv2.INTER_AREA)
        out[slot] = resized[:, ::-1] if crops.flips[i] else resized


def decode_ffcv(images: Images, crops: Crops, part: slice, out: NDArray[np.uint8]) -> None:
    """Call the functions of FFCV's RandomResizedCrop decoder and flip, without its numba loop, which costs little."""
    from ffcv.libffcv import imdecode, resize_crop

    for slot, i in enumerate(range(len(images))[part]):
        start, height, width = int(images.offsets[i]), int(images.heights[i]), int(images.widths[i])
        jpeg = images.data[start : start + int(images.sizes[i])]
        image = _FFCV_BUFFER[: height * width * 3].reshape(height, width, 3)
        imdecode(jpeg, image, height, width, height, width, 0, 0, 1, 1, False, False)
        top, left, crop_height, crop_width = (int(edge) for edge in crops.boxes[i])
        resize_crop(image, top, top + crop_height, left, left + crop_width, out[slot])
        if crops.flips[i]:
            out[slot] = out[slot, :, ::-1].copy()


def has_ffcv() -> bool:
    """Return whether FFCV can be imported."""
    try:
        import ffcv.libffcv  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def decode_crops(
    decoder: CropDecoder, images: Images, crops: Crops, part: slice, out: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Decode with CropDecoder; return the statuses."""
    boxes, flips = crops.boxes[part], crops.flips[part]
    offsets, sizes = images.offsets[part], images.sizes[part]
    return decoder.decode_crops(images.data, offsets, sizes, boxes, flips, out[: len(boxes)])


def measure(images: Images, resolution: int, rounds: int) -> dict[str, Any]:
    """Return the ms per image of each method, its ratio to CropDecoder, and the differences in gray levels."""
    crops = random_resized_crops(images)
    decoder = CropDecoder(int(images.heights.max()), int(images.widths.max()))
    ours = np.empty((GROUP, resolution, resolution, 3), np.uint8)
    reference = np.empty_like(ours)
    parts = [slice(start, min(start + GROUP, len(images))) for start in range(0, len(images), GROUP)]
    means, largest = [], 0
    for part in parts:
        statuses = decode_crops(decoder, images, crops, part, ours)
        if statuses.any():
            raise RuntimeError(f"statuses {statuses.tolist()}")
        decode_full(images, crops, part, reference)
        number = part.stop - part.start
        difference = np.abs(ours[:number].astype(np.int16) - reference[:number])
        means += difference.mean(axis=(1, 2, 3)).tolist()
        largest = max(largest, int(difference.max()))
    methods: dict[str, Callable[[slice], object]] = {
        "fast": lambda part: decode_crops(decoder, images, crops, part, ours),
        "whole": lambda part: decode_full(images, crops, part, reference),
    }
    if has_ffcv():
        methods["stock"] = lambda part: decode_ffcv(images, crops, part, reference)
    seconds = {name: np.zeros(rounds) for name in methods}
    for turn in range(rounds):
        for part in parts:
            for name, decode in methods.items():
                begin = time.perf_counter()
                decode(part)
                seconds[name][turn] += time.perf_counter() - begin
    return {
        "resolution": resolution,
        "ratios": {name: float(np.median(seconds[name] / seconds["fast"])) for name in methods},
        "milliseconds": {name: float(seconds[name].min() / len(images) * 1e3) for name in methods},
        "mean_difference": float(np.mean(means)),
        "worst_image_difference": float(np.max(means)),
        "largest_difference": largest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of JPEG files")
    parser.add_argument("--count", type=int, default=400, help="images to decode")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[224, 160])
    parser.add_argument(
        "--intervals", type=int, nargs="+", default=[4, 0], help="restart intervals in MCUs; 0: no restart markers"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    check_report(arguments.json)
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
    run_command(lambda _: main())
