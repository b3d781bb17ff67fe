"""Mean and standard deviation of the channels of a .beton's pictures."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rebar.beton.format import BetonError
from rebar.beton.reader import BetonFile
from rebar.beton.stored_pictures import decode_picture, for_all_pictures


@dataclass(frozen=True)
class ChannelStats:
    """Of red, green and blue, as shares of 255; every picture counts alike, whatever its size."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_samples: int

    def to_json(self) -> str:
        """What training takes as ``--stats-file``."""
        content = {"mean": self.mean, "std": self.std, "num_samples": self.num_samples}
        return json.dumps(content) + "\n"


def measure_stats(
    path: Path | str, *, num_threads: int = 0, on_progress: Callable[[int], None] | None = None
) -> ChannelStats:
    """Over all pixels of all pictures. Raises BetonError for a file, or a picture in it, that cannot be read.

    ``on_progress`` is called with the number of pictures done.
    """
    file = BetonFile.open(path)
    moments = np.zeros((2, 3))
    for done, found in for_all_pictures(file, _moments, num_threads):
        moments += found
        if on_progress:
            on_progress(done)
    mean, squares = moments / len(file)
    red, green, blue = (round(float(value), 6) for value in mean)
    wide = [round(float(value), 6) for value in np.sqrt(np.maximum(squares - mean**2, 0))]
    return ChannelStats((red, green, blue), (wide[0], wide[1], wide[2]), len(file))


def _moments(file: BetonFile, run: range) -> np.ndarray:
    """The sums over pictures of the mean level and the mean squared level, ``[2, 3]``."""
    levels = np.arange(256) / 255
    sums = np.zeros((2, 3))
    for index in run:
        try:
            picture = decode_picture(file, index)
        except BetonError as error:
            raise BetonError(f"{file.path}: the picture of sample {index} {error}; see --verify") from None
        for channel in range(3):
            shares = np.bincount(picture[..., channel].ravel(), minlength=256) / (picture.shape[0] * picture.shape[1])
            sums[:, channel] += shares @ levels, shares @ levels**2
    return sums
