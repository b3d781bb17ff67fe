"""A .beton as FFCV's reader sees it, of whatever fields, and its memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.beton.format import BetonError
from rebar.loading.ffcv_import import ffcv_compiler


@dataclass(frozen=True, eq=False)
class FfcvFile:
    """``handlers`` are FFCV's fields by name, ``metadata`` the samples' records, ``storage`` what code reads from."""

    path: Path
    num_samples: int
    page_size: int
    handlers: Mapping[str, Any]
    metadata: NDArray[Any]
    storage: tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint64]]
    pages: NDArray[np.int64]
    """On which page each sample begins."""
    _region_samples: NDArray[np.uint64]

    @staticmethod
    def open(path: Path, custom_fields: Mapping[str, Any]) -> "FfcvFile":
        """Raises BetonError for a file that is cut short."""
        ffcv_compiler()
        from ffcv.reader import Reader

        reader = Reader(str(path), custom_fields)
        table = reader.alloc_table[np.argsort(reader.alloc_table["ptr"], kind="stable")]
        if len(table) and int((table["ptr"] + table["size"]).max()) > path.stat().st_size:
            raise BetonError(f"{path}: is cut short or damaged: a sample lies behind its end; copy it again")
        first = np.zeros(int(reader.num_samples), np.uint64)
        first[table["sample_id"][::-1].astype(np.int64)] = table["ptr"][::-1]  # the first region is written last
        regions = [np.ascontiguousarray(table[name]) for name in ("ptr", "size", "sample_id")]
        return FfcvFile(
            path=path,
            num_samples=int(reader.num_samples),
            page_size=int(reader.page_size),
            handlers=reader.handlers,
            metadata=reader.metadata,
            storage=(np.asarray(np.memmap(path, np.uint8, mode="r")), regions[0], regions[1]),
            pages=(first // np.uint64(reader.page_size)).astype(np.int64),
            _region_samples=regions[2],
        )

    def regions(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Where samples lie: offsets and sizes (bytes)."""
        mine = np.isin(self._region_samples, indices.astype(np.uint64))
        return self.storage[1][mine], self.storage[2][mine]


def compile_read() -> Any:
    """The function by which compiled decoders read: the bytes of the region at an address of ``storage``."""

    def read(address, storage):  # type: ignore[no-untyped-def]
        size = storage[2][np.searchsorted(storage[1], address)]
        return storage[0][address : address + size]

    return ffcv_compiler().compile(read)
