"""Another .beton file as the source: stored anew at another size, with restart markers, or a part of it."""

from collections.abc import Sequence
from pathlib import Path

from rebar.beton.format import MODE_RAW
from rebar.beton.reader import BetonFile


class BetonSource:
    """The samples of a .beton file, ours or stock FFCV's, in its order. Raises BetonError."""

    def __init__(self, path: Path) -> None:
        self._file = BetonFile.open(path)

    @property
    def class_names(self) -> Sequence[str]:
        """The sidecar's, else the labels' numbers."""
        return self._file.class_names or [str(label) for label in range(self._file.num_classes)]

    def __len__(self) -> int:
        return len(self._file)

    def label(self, index: int) -> int:
        """The sample's label."""
        return int(self._file.labels[index])

    def read(self, index: int) -> bytes:
        """The JPEG as stored; raw pixels as a PPM file, which has the same pixels."""
        content = self._file.image_bytes(index).tobytes()
        if self._file.modes[index] == MODE_RAW:
            return b"P6 %d %d 255\n" % (self._file.widths[index], self._file.heights[index]) + content
        return content

    def name(self, index: int) -> str:
        """The file, and the number of the sample."""
        return f"{self._file.path}: sample {index}"
