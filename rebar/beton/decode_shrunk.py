"""JPEGs decoded and shrunk in one go, by the kernels that training decodes with.

Their planes are resized before they become RGB, by averaging areas as FFCV's writer does on the decoded picture: the
two differ by a quarter of a grey level on average.
"""

import functools
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from rebar.jpeg.fast import CropDecoder

_MOST_PIXELS = 1 << 24  # the kernels' memory for larger pictures would be kept for ever
_STEP = 1024  # pixels by which the largest height and width grow


def decode_shrunk(content: bytes, size: tuple[int, int], wanted: tuple[int, int]) -> np.ndarray | None:
    """A JPEG of ``size`` (width, height) at the smaller size ``wanted``, BGR uint8 ``[height, width, 3]``.

    None where the kernels do not take it, or find a fault.
    """
    if size[0] * size[1] > _MOST_PIXELS or wanted[0] > size[0] or wanted[1] > size[1]:
        return None
    decoder = _decoder(-(-size[1] // _STEP) * _STEP, -(-size[0] // _STEP) * _STEP)
    out = np.empty((1, wanted[1], wanted[0], 3), np.uint8)
    place, box = np.array([0, len(content)], np.uint64), np.array([[0, 0, size[1], size[0]]])
    jpeg, straight = np.frombuffer(content, np.uint8), np.zeros(1, np.bool_)
    statuses = decoder.decode_crops(jpeg, place[:1], place[1:], box, straight, out)
    return cv2.cvtColor(out[0], cv2.COLOR_RGB2BGR) if int(statuses[0]) == 0 else None


@functools.lru_cache(maxsize=4)
def _decoder(max_height: int, max_width: int) -> "CropDecoder":
    """This process's, for pictures of up to this size."""
    from rebar.jpeg.fast import CropDecoder

    return CropDecoder(max_height, max_width)
