"""A .beton file as an image source, to write a subset or a copy with other settings."""

from collections.abc import Sequence
from pathlib import Path

from rebar.beton.format import MODE_RAW
from rebar.beton.reader import BetonFile


class BetonSource:
    """The samples of a .beton file in file order. Accepts files written by Rebar and by stock FFCV.

    Raises BetonError if the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = BetonFile.open(path)

    @property
    def class_names(self) -> Sequence[str]:
        """Class names from the sidecar; without a sidecar, the label numbers as text."""
        return self._file.class_names or [str(label) for label in range(self._file.num_classes)]

    def __len__(self) -> int:
        return len(self._file)

    def label(self, index: int) -> int:
        """Return the label of a sample."""
        return int(self._file.labels[index])

    def read(self, index: int) -> bytes:
        """Return the stored JPEG. Raw pixels are returned as a PPM file, without loss."""
        content = self._file.image_bytes(index).tobytes()
        if self._file.modes[index] == MODE_RAW:
            return b"P6 %d %d 255\n" % (self._file.widths[index], self._file.heights[index]) + content
        return content

    def name(self, index: int) -> str:
        """Return the path of the file and the number of the sample."""
        return f"{self._file.path}: sample {index}"
