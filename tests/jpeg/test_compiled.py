"""Kernels come from the disk cache, the right ones, quickly, whatever kind of memory the data is in."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from rebar.jpeg import compiled, fast
from rebar.jpeg.fast import CropDecoder
from tests.conftest import REPOSITORY
from tests.jpeg.pictures import crop_fast, encode, photograph

START = """
import time
import numpy as np
from rebar.jpeg.fast import CropDecoder, _decode_crops
begin = time.perf_counter()
jpeg, out = np.fromfile({file!r}, np.uint8), np.zeros((1, 32, 32, 3), np.uint8)
sizes, boxes = np.array([jpeg.size], np.uint64), np.array([[0, 0, 40, 50]])
statuses = CropDecoder(60, 60).decode_crops(jpeg, np.zeros(1, np.uint64), sizes, boxes, np.zeros(1, np.bool_), out)
print(int(statuses[0]), sum(_decode_crops.stats.cache_misses.values()), time.perf_counter() - begin)
"""


def test_one_signature_serves_all_memory(tmp_path: Path) -> None:
    """Each further one would cost seconds of compiling, in every process."""
    jpeg = encode(photograph(50, 60), interval=2)
    (tmp_path / "one.jpg").write_bytes(jpeg.tobytes())
    decoder = CropDecoder(60, 60)
    kinds = [
        jpeg,
        np.frombuffer(jpeg.tobytes(), np.uint8),
        np.memmap(tmp_path / "one.jpg", np.uint8, mode="r"),
        np.concatenate([jpeg, jpeg])[: jpeg.size],
    ]
    results = [crop_fast(decoder, data, (1, 2, 40, 50), (32, 32))[1] for data in kinds]
    assert all(np.array_equal(result, results[0]) for result in results)
    assert len(fast._decode_crops.signatures) == 1


def test_the_stamp_is_of_the_whole_package() -> None:
    """Else a change in one file would go on running another's old machine code."""
    assert fast._decode_crops._cache._cache_file._source_stamp == compiled._PACKAGE_DIGEST


def test_another_process_finds_the_kernel_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "one.jpg"
    file.write_bytes(encode(photograph(50, 60), interval=2).tobytes())
    script = START.format(file=str(file))
    crop_fast(CropDecoder(60, 60), np.fromfile(file, np.uint8), (0, 0, 40, 50), (32, 32))  # compiled at the latest now
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    status, misses, seconds = done.stdout.split()
    assert (int(status), int(misses)) == (0, 0)
    assert float(seconds) < 5  # about 0.2 on a quiet machine; compiling takes 20
