"""Entry point of all commands: exit status, error messages and warnings."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from rebar.errors import RebarError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def warn(message: str) -> None:
    """Print a warning to stderr, on rank 0 only."""
    if _rank() == 0:
        print(f"warning: {message}", file=sys.stderr, flush=True)


def run_command(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run ``main(argv)`` and exit with status 0, 1 after a :class:`RebarError`, or 130 after Ctrl-C.

    With ``--debug`` on the command line, the traceback is printed as well.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        main([argument for argument in arguments if argument != "--debug"])
    except RebarError as error:
        if debug:
            traceback.print_exc()
        prefix = f"[rank {_rank()}] " if "RANK" in os.environ else ""
        print(f"{prefix}error: {error} [{error.code}]", file=sys.stderr, flush=True)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)
