"""Entry point of all commands: exit status, error messages and warnings."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from rebar.errors import RebarError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


def _rank() -> int:
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0  # join_world reports other values


def escape_control_characters(text: str) -> str:
    """Replace control characters, such as those of terminal escape sequences, with Python escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _escape_lines(text: str) -> str:
    return "\n".join(escape_control_characters(line) for line in text.split("\n"))


def warn(message: str) -> None:
    """Print a warning to stderr, on rank 0 only."""
    if _rank() == 0:
        print(f"warning: {_escape_lines(message)}", file=sys.stderr, flush=True)


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
        print(f"{prefix}error: {_escape_lines(str(error))} [{error.code}]", file=sys.stderr, flush=True)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)
