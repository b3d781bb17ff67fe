"""Waiting for AWS, never for ever."""

import time
from collections.abc import Callable
from typing import TypeVar

from rebar.cloud.errors import CloudError

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds


def wait_until(what: str, look: Callable[[], T], done: Callable[[T], bool], *, seconds: float) -> T:
    """Look again and again until ``done``; tells about it once a minute.

    ``look`` and ``done`` may raise to end the wait. Raises CloudError after ``seconds``.
    """
    began = told = time.monotonic()
    pause = FIRST_PAUSE
    while not done(seen := look()):
        waited = time.monotonic() - began
        if waited > seconds:
            raise CloudError(f"{what}: not after {waited:.0f} s; look in the AWS console, then run the command again")
        if time.monotonic() - told > 60:
            print(f"  waiting for {what} ({waited / 60:.0f} min)", flush=True)
            told = time.monotonic()
        time.sleep(min(pause, max(0.0, seconds - waited) + 0.01))
        pause = min(2 * pause, LONGEST_PAUSE)
    return seen
