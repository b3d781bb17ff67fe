"""Pictures that are files in a folder."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rebar.beton.sources.names import PackedNames

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What counts as a picture, in any mixture of upper and lower case: torchvision's list."""


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return name.lower().endswith(EXTENSIONS)


class LabelledFiles:
    """The files ``names`` below ``root``, with their labels, indices into ``class_names``."""

    def __init__(self, root: Path, class_names: Sequence[str], names: Iterable[str], labels: np.ndarray) -> None:
        self.root = root
        self.class_names = list(class_names)
        self._names = PackedNames(names)
        self._labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """The number of the picture's class."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """The content of the picture's file."""
        with open(self.name(index), "rb") as file:
            return file.read()

    def name(self, index: int) -> str:
        """The path of the picture's file."""
        return os.path.join(self.root, self._names[index])
