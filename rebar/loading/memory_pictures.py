"""Pictures anywhere in this process's memory, as compiled code hands them over: by address."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.foreign_memory import array_at
from rebar.loading.ahead import shares
from rebar.loading.crops import Crops
from rebar.loading.decode import CorruptSampleError
from rebar.loading.fast_decode import DecoderPool

COLUMNS = ("sample", "address", "size", "mode", "height", "width")
"""What a row of the table says, all int64."""

_IN_MEMORY = Path("memory")
_decoders = DecoderPool(keep=256)


@dataclass(frozen=True)
class MemoryPictures:
    """Pictures that are decoded in the order they lie in; ``samples`` are their numbers in the file."""

    samples: NDArray[np.int64]
    data: NDArray[np.uint8]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    modes: NDArray[np.uint8]
    heights: NDArray[np.uint16]
    widths: NDArray[np.uint16]
    path: Path = _IN_MEMORY

    def __len__(self) -> int:
        return len(self.samples)

    @staticmethod
    def of_table(address: int, count: int) -> "MemoryPictures":
        """The pictures that a table of COLUMNS at ``address`` describes; their memory outlives this object."""
        table = array_at(address, (count, len(COLUMNS)), "<i8", read_only=True)
        samples, addresses, sizes, modes, heights, widths = np.ascontiguousarray(table.T)
        first, end = int(addresses.min()), int((addresses + sizes).max())
        return MemoryPictures(
            samples=samples,
            # All memory from the first to the last; only what offsets and sizes name is looked at.
            data=array_at(first, (end - first,), "|u1", read_only=True),
            offsets=(addresses - first).astype(np.uint64),
            sizes=sizes.astype(np.uint64),
            modes=modes.astype(np.uint8),
            heights=heights.astype(np.uint16),
            widths=widths.astype(np.uint16),
        )

    @staticmethod
    def array_at(address: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Somebody's uint8 memory to write to."""
        return array_at(address, shape, "|u1", read_only=False)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """One pool a process and size: FFCV never says when an operation ends."""
    return ThreadPoolExecutor(count, thread_name_prefix="rebar-operation")


def decode_on_threads(
    pictures: MemoryPictures, crops: Crops, out: NDArray[np.uint8], num_threads: int
) -> list[tuple[int, CorruptSampleError]]:
    """Decode everything into ``out``; returns the places that could not be filled, each with the reason."""
    parts = shares(len(pictures), num_threads)
    if len(parts) == 1:
        return _decode_share(pictures, crops, out, parts[0])
    decoded: Any = _threads(num_threads).map(lambda share: _decode_share(pictures, crops, out, share), parts)
    return [failure for failures in decoded for failure in failures]


def _decode_share(
    pictures: MemoryPictures, crops: Crops, out: NDArray[np.uint8], share: slice
) -> list[tuple[int, CorruptSampleError]]:
    height, width = int(pictures.heights[share].max()), int(pictures.widths[share].max())
    indices = np.arange(share.start, share.stop)
    some = Crops(crops.boxes[share], crops.flips[share])
    with _decoders.borrow(height, width) as decoder:
        return [(share.start + slot, error) for slot, error in decoder.decode(pictures, indices, some, out[share])]
