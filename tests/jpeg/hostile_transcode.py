"""Feeds the transcoder broken JPEGs, each ending where readable memory ends; run by test_transcode.py.

    python -m tests.jpeg.hostile_transcode SEED COUNT

What it calls good, libjpeg-turbo must decode to the same samples from both, the broken one and the rewritten.
"""

import sys
from collections import Counter

import numpy as np

from rebar.jpeg import turbojpeg
from rebar.jpeg.status import Status
from rebar.jpeg.transcoder import Transcoder
from tests.jpeg.hostile import HEIGHT, WIDTH, GuardedMemory, damage
from tests.jpeg.images import KINDS, encode, photograph


def main(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    jpegs = [
        encode(photograph(HEIGHT, WIDTH, i), kind, interval, 80, optimise)
        for i, (kind, interval, optimise) in enumerate(
            (kind, interval, optimise) for kind in KINDS for interval, optimise in ((0, False), (1, True), (3, False))
        )
    ]
    memory = GuardedMemory(4 * max(jpeg.size for jpeg in jpegs))
    transcoder, statuses = Transcoder(), Counter[str]()
    for _ in range(count):
        jpeg, other = (jpegs[int(rng.integers(len(jpegs)))] for _ in range(2))
        held = memory.hold(damage(jpeg, other, rng))
        status, header = transcoder.read_header(held)
        if status == Status.OK:
            status, rewritten = transcoder.write(held, header, int(rng.integers(0, 6)))
        statuses[status.name] += 1
        if status == Status.OK and header.height <= 4 * HEIGHT and header.width <= 4 * WIDTH:
            same_samples(held.copy(), rewritten)
    print(dict(statuses))
    assert statuses["OK"] > count // 50
    assert statuses["OK"] < count // 2


def same_samples(jpeg: np.ndarray, rewritten: np.ndarray) -> None:
    """Where libjpeg-turbo finds the broken one without fault; else the rewritten one at least is."""
    after = turbojpeg.decode_rgb(rewritten)
    try:
        before = turbojpeg.decode_rgb(jpeg)
    except turbojpeg.JpegError:
        return
    np.testing.assert_array_equal(before, after)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
