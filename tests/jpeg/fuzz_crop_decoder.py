"""Fuzz CropDecoder with damaged JPEGs that end at a guard page; run by test_corrupt_jpegs.py.

    python -m tests.jpeg.fuzz_crop_decoder SEED COUNT

A read past the data crashes the process. Prints how often each status occurred.
"""

import ctypes
import mmap
import sys
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.crop_decoder import CropDecoder, Status
from tests.jpeg.images import KINDS, decode_crop, encode, photograph, random_box

HEIGHT, WIDTH = 60, 90
_PAGE = mmap.PAGESIZE
_PROT_NONE = 0


class GuardedMemory:
    """Bytes that end right before a page without read access."""

    def __init__(self, size: int) -> None:
        pages = -(-size // _PAGE)
        self._map = mmap.mmap(-1, (pages + 1) * _PAGE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._end = pages * _PAGE
        libc = ctypes.CDLL(None, use_errno=True)
        guard = ctypes.c_void_p(self._bytes.ctypes.data + self._end)
        if libc.mprotect(guard, ctypes.c_size_t(_PAGE), _PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")

    def copy_in(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        copy = self._bytes[self._end - data.size : self._end]
        copy[:] = data
        return copy


def damage(jpeg: NDArray[np.uint8], other: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Truncate, flip bits, overwrite with markers or noise, splice two files, or delete bytes: one to three times."""
    broken = jpeg.copy()
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, broken.size)) if rng.random() < 0.5 else int(rng.integers(0, min(700, broken.size)))
        kind = int(rng.integers(6))
        if kind == 0:
            broken = broken[: max(at, 1)]
        elif kind == 1:
            broken[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            broken[at : at + 2] = np.array([0xFF, rng.integers(0xC0, 0x100)], np.uint8)[: broken.size - at]
        elif kind == 3:
            length = int(rng.integers(1, 40))
            broken[at : at + length] = rng.integers(0, 256, broken[at : at + length].size)
        elif kind == 4:
            broken = np.concatenate([broken[:at], other[int(rng.integers(0, other.size)) :]])
        else:
            broken = np.concatenate([broken[:at], broken[at + int(rng.integers(1, 30)) :]])
        broken = broken if broken.size else jpeg[:1].copy()
    return broken


def main(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    jpegs = [
        encode(photograph(HEIGHT, WIDTH, i), kind, interval, quality, optimize)
        for i, (kind, interval, quality, optimize) in enumerate(
            (kind, interval, quality, optimize)
            for kind in KINDS
            for interval, quality, optimize in ((0, 90, False), (1, 30, True), (3, 95, False), (1000, 70, True))
        )
    ]
    memory = GuardedMemory(4 * max(jpeg.size for jpeg in jpegs))
    decoder = CropDecoder(HEIGHT, WIDTH)
    # Decode a valid image in between: corrupt images must not affect later results through the scratch memory.
    probe, probe_box = jpegs[2], (3, 4, 50, 70)
    _, expected = decode_crop(decoder, probe, probe_box, (33, 33))
    statuses: Counter[str] = Counter()
    for number in range(count):
        jpeg, other = (jpegs[int(rng.integers(len(jpegs)))] for _ in range(2))
        damaged = memory.copy_in(damage(jpeg, other, rng))
        size = (int(rng.integers(1, 50)), int(rng.integers(1, 50)))
        status, _ = decode_crop(decoder, damaged, random_box(rng, HEIGHT, WIDTH), size, bool(rng.integers(2)))
        statuses[status.name] += 1
        if number % 50 == 0:
            assert np.array_equal(decode_crop(decoder, memory.copy_in(probe), probe_box, (33, 33))[1], expected)
    print(dict(statuses))
    assert statuses.keys() <= Status.__members__.keys()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
