"""Decoding as the peers do that keep JPEGs as bytes: the whole image with simplejpeg, then OpenCV."""

import random
from typing import Any

from peers.torch_data import random_box


def crop_of(jpeg: bytes, resolution: int) -> Any:
    """A random crop, uint8 ``[resolution, resolution, 3]``, resized with INTER_AREA, mirrored half of the time."""
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    image = simplejpeg.decode_jpeg(jpeg)
    top, left, height, width = random_box(*image.shape[:2])
    cropped = image[top : top + height, left : left + width]
    resized = cv2.resize(cropped, (resolution, resolution), interpolation=cv2.INTER_AREA)
    return cv2.flip(resized, 1) if random.random() < 0.5 else resized
