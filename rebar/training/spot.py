"""EC2's notice that a spot machine will be taken away in two minutes.

``spot/instance-action`` is asked for every few seconds; it is missing until the machine is to go.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rebar.cli import warn
from rebar.instance_metadata import ANSWER_SECONDS, SPOT_NOTICE, InstanceMetadata


@contextmanager
def watch_for_notice(on_notice: Callable[[], None], *, every_seconds: float = 5.0) -> Iterator[None]:
    """Ask for the notice in a thread meanwhile; ``on_notice`` is called once, in that thread."""
    service, over = InstanceMetadata(), threading.Event()

    def watch() -> None:
        answered = True
        while not over.is_set():
            try:
                if service.get(SPOT_NOTICE) is not None:
                    on_notice()
                    return
                answered = True
            except (OSError, ValueError) as error:
                if answered:  # once, not every few seconds
                    warn(f"{service.endpoint} does not answer: a spot interruption would not be noticed ({error})")
                answered = False
            over.wait(every_seconds)

    watcher = threading.Thread(target=watch, name="rebar-spot-notice", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(timeout=2 * ANSWER_SECONDS)
