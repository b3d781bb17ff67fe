"""How large a picture may be, and what a larger one is shrunk to."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

Side = Literal["long", "short"]


@dataclass(frozen=True)
class SizeLimit:
    """At most ``pixels`` for the longer or the shorter side; 0 or None: no limit."""

    pixels: int | None
    side: Side = "long"

    def apply(self, width: int, height: int) -> tuple[int, int]:
        """The width and height that a picture of this size gets.

        FFCV's own (``ffcv.fields.rgb_image.resizer``), truncated, but no side becomes zero.
        """
        measured = max(width, height) if self.side == "long" else min(width, height)
        if not self.pixels or measured <= self.pixels:
            return width, height
        ratio = self.pixels / measured
        return max(1, int(ratio * width)), max(1, int(ratio * height))


def shrink(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (height, width, 3) at another width and height, by averaging areas as FFCV does."""
    if picture.shape[1::-1] == size:
        return picture
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
