"""Full-image decoding with simplejpeg and resizing with OpenCV, for the peers that store JPEGs as bytes."""

import random
from typing import Any

from peers.torch_data import random_box


def random_resized_crop(jpeg: bytes, resolution: int) -> Any:
    """Return a random resized crop, uint8 ``[resolution, resolution, 3]``, INTER_AREA, flipped half of the time."""
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    image = simplejpeg.decode_jpeg(jpeg)
    top, left, height, width = random_box(*image.shape[:2])
    cropped = image[top : top + height, left : left + width]
    resized = cv2.resize(cropped, (resolution, resolution), interpolation=cv2.INTER_AREA)
    return cv2.flip(resized, 1) if random.random() < 0.5 else resized
