"""Compile this package's code for this processor, so that nobody waits for it later: ``python -m rebar.jpeg``."""

import io

import numpy as np
from PIL import Image

from rebar.jpeg.machine_code import load_kernel
from rebar.jpeg.transcode import Transcoder


def main() -> None:
    """The decoder becomes a library of its own; numba keeps the transcoder, once it has done anything."""
    load_kernel()
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    jpeg = np.frombuffer(file.getvalue(), np.uint8)
    transcoder = Transcoder()
    _, header = transcoder.read_header(jpeg)
    transcoder.write(jpeg, header, interval=1)


if __name__ == "__main__":
    main()
