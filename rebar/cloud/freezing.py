"""A file system stands still while a snapshot of it is begun, and is always let go."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rebar.cli import warn
from rebar.cloud.errors import CloudError
from rebar.cloud.shell import run_program

LONGEST_SECONDS = 300

# Waits for its standard input to end, which it does however we end, then thaws.
THAW = 'timeout "$2" cat >/dev/null; exec fsfreeze --unfreeze "$1"'


@contextmanager
def frozen(target: Path) -> Iterator[None]:
    """Freeze a mounted file system; another process thaws it afterwards, even if this one is killed.

    Raises CloudError where freezing or thawing fails, or where it took so long that it was thawed meanwhile.
    """
    keeper = subprocess.Popen(
        ["sh", "-c", THAW, "thaw", str(target), str(LONGEST_SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        start_new_session=True,  # Ctrl-C is for us, not for it
    )
    try:
        run_program("fsfreeze", "--freeze", str(target))
    except BaseException:
        keeper.communicate()
        raise
    overdue = False
    try:
        yield
        overdue = keeper.poll() is not None
    finally:
        told = keeper.communicate()[1].strip()
        if keeper.returncode:
            warn(f"{target} could not be thawed ({told}): run fsfreeze --unfreeze {target}")
    if overdue:
        raise CloudError(f"{target} was thawed after {LONGEST_SECONDS} s, before the snapshot was begun: try again")
