"""Fuzz Transcoder with damaged JPEGs that end at a guard page; run by test_transcoder.py.

    python -m tests.jpeg.fuzz_transcoder SEED COUNT

If the status is OK, libjpeg-turbo must decode the input and the output to the same samples.
"""

import sys
from collections import Counter

import numpy as np

from rebar.jpeg.decode import decode_rgb
from rebar.jpeg.format import JpegError, Status
from rebar.jpeg.transcoder import Transcoder
from tests.jpeg.fuzz_crop_decoder import HEIGHT, WIDTH, GuardedMemory, damage
from tests.jpeg.images import KINDS, encode, photograph


def main(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    jpegs = [
        encode(photograph(HEIGHT, WIDTH, i), kind, interval, 80, optimize)
        for i, (kind, interval, optimize) in enumerate(
            (kind, interval, optimize) for kind in KINDS for interval, optimize in ((0, False), (1, True), (3, False))
        )
    ]
    memory = GuardedMemory(4 * max(jpeg.size for jpeg in jpegs))
    transcoder, statuses = Transcoder(), Counter[str]()
    for _ in range(count):
        jpeg, other = (jpegs[int(rng.integers(len(jpegs)))] for _ in range(2))
        damaged = memory.copy_in(damage(jpeg, other, rng))
        status, header = transcoder.read_header(damaged)
        if status == Status.OK:
            status, rewritten = transcoder.write(damaged, header, int(rng.integers(0, 6)))
        statuses[status.name] += 1
        if status == Status.OK and header.height <= 4 * HEIGHT and header.width <= 4 * WIDTH:
            check_same_samples(damaged.copy(), rewritten)
    print(dict(statuses))
    assert statuses["OK"] > count // 50
    assert statuses["OK"] < count // 2


def check_same_samples(jpeg: np.ndarray, rewritten: np.ndarray) -> None:
    """Check that both decode to the same samples, or that at least ``rewritten`` decodes."""
    after = decode_rgb(rewritten)
    try:
        before = decode_rgb(jpeg)
    except JpegError:
        return
    np.testing.assert_array_equal(before, after)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
