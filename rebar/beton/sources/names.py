"""A million names in little memory."""

import os
from collections.abc import Iterable

import numpy as np


class PackedNames:
    """Names kept in one bytes object, which is small and quick to send to a process."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._content = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._content[start : int(self._ends[index])])
