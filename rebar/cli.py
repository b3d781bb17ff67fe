"""Entry point of all commands: exit status, error messages, warnings, and progress of scans."""

import argparse
import importlib
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rebar.errors import RebarError, Terminated

if TYPE_CHECKING:
    from tqdm import tqdm

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
_TORCHRUN_SECONDS = 1.0
_TORCH_FREE_FLAGS = {"--help", "-h", "--help-all", "--print-config"}


def _rank() -> int:
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0  # join_world reports other values


def escape_control_characters(text: str) -> str:
    """Replace control characters, such as those of terminal escape sequences, with Python escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in escape_undecodable(text))


def escape_undecodable(text: str) -> str:
    """Replace the bytes of a file name that are not UTF-8 with escapes such as ``\\xe9``, so that it can be encoded."""
    if text.isascii():
        return text
    return "".join(_escape_surrogate(c) if "\ud800" <= c <= "\udfff" else c for c in text)


def _escape_surrogate(letter: str) -> str:
    byte = ord(letter) - 0xDC00  # Python decodes such a byte to this code point
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else f"\\u{ord(letter):04x}"


def display_name(name: str, limit: int = 60) -> str:
    """Return a name from a dataset as it is shown: control characters are escaped, and long names are shortened."""
    text = escape_control_characters(name)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def escape_lines(text: str) -> str:
    """Escape the control characters of a text except for its line breaks."""
    return "\n".join(escape_control_characters(line) for line in text.split("\n"))


def warn(message: str) -> None:
    """Print a warning to stderr, on rank 0 only."""
    if _rank() == 0:
        print(f"warning: {escape_lines(message)}", file=sys.stderr, flush=True)


def note(message: str) -> None:
    """Print a note to stderr, on rank 0 only."""
    if _rank() == 0:
        print(f"note: {escape_lines(message)}", file=sys.stderr, flush=True)


def count(number: float, noun: str, plural: str = "") -> str:
    """Return a number with its noun, such as '1 epoch', '1.5 epochs' or '2,000 classes'; ``plural`` if irregular."""
    digits = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{digits} {noun if number == 1 else plural or f'{noun}s'}"


def and_others(first: str, others: int, noun: str, plural: str = "") -> str:
    """Return the first of several, with the number of the others: 'a.jpg and 2 more images'."""
    return f"{first} and {count(others, f'more {noun}', plural and f'more {plural}')}" if others else first


@contextmanager
def raise_terminated() -> Iterator[None]:
    """Raise :class:`Terminated` in the block for SIGTERM and SIGHUP, unless they are ignored, as with ``nohup``."""

    def handle(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # until the block has cleaned up
        raise Terminated(number)

    handled = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def progress_bar(
    description: str,
    total: int | None,
    unit: str,
    *,
    initial: int = 0,
    enabled: bool = True,
    delay: float = 2.0,
    log_interval: float = 5.0,
) -> "tqdm[None]":
    """Return a progress bar, which is shown after ``delay`` seconds; ``unit`` "B" is bytes.

    It is drawn twice a second on a terminal. Elsewhere, where every refresh is a line, every ``log_interval`` seconds.
    """
    from tqdm import tqdm  # not at the top: the doctor reports that it is missing

    return tqdm(
        desc=description or None,
        total=total,
        initial=initial,
        disable=not enabled,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=unit == "B",
        delay=delay,
        mininterval=0.5 if sys.stderr.isatty() else log_interval,
        dynamic_ncols=True,
    )


@contextmanager
def phase(description: str, show: Callable[[str], None] | None = None, *, after: float = 5.0) -> Iterator[None]:
    """If the block takes longer than ``after`` seconds, print what is being done, and then the elapsed time.

    On a terminal one line is updated every second. In a file, or with ``show``, which prints a line, the lines are at
    increasing intervals. Prints on rank 0 only.
    """
    if _rank() != 0:
        yield
        return
    is_line, ended = show is None and sys.stderr.isatty(), threading.Event()

    def run() -> None:
        start, wait = time.monotonic(), after
        while not ended.wait(wait):
            seconds = time.monotonic() - start
            text = f"{description}: {seconds:.0f} s"
            if is_line:
                print(f"\r{text}", end="", file=sys.stderr, flush=True)
            else:
                (show or (lambda line: print(line, file=sys.stderr, flush=True)))(text)
            wait = min(after, 1.0) if is_line else seconds
        if is_line and time.monotonic() - start > after:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose usage errors are RebarErrors."""

    def error(self, message: str) -> NoReturn:
        raise RebarError(f"command line: {message}. See --help.", code="config-invalid-value")


def _report_to_torchrun(message: str) -> None:
    """Write the file from which torchrun prints the message of the first rank that failed, at the end of its output.

    The format is that of ``torch.distributed.elastic.multiprocessing.errors.record``.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        content = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with suppress(OSError):
            Path(path).write_text(json.dumps(content))


def _wait_for_torchrun() -> None:
    """Give torchrun time to end this rank silently, if another one failed before or fails for the same reason."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(_TORCHRUN_SECONDS)


def start_script(name: str, command: str, parse: str) -> None:
    """Prepare a script before imports that take seconds. ``name`` is its ``__name__``, ``command`` its console command.

    Ctrl-C ends the process with one line instead of a traceback, and ``--help`` and ``--print-config`` are answered by
    the function ``parse``, such as ``package.module:function``. Does nothing if the script is imported by another.
    """
    if name != "__main__" and Path(sys.argv[0]).stem != command:
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit_interrupted)
    if _TORCH_FREE_FLAGS & set(sys.argv[1:]):
        module, _, function = parse.partition(":")
        run_command(getattr(importlib.import_module(module), function))


def _exit_interrupted(number: int, frame: object) -> NoReturn:
    if _rank() == 0:
        print("interrupted", file=sys.stderr, flush=True)
    os._exit(EXIT_INTERRUPTED)  # an import may catch exceptions


def run_command(main: Callable[[Sequence[str]], object], argv: Sequence[str] | None = None) -> None:
    """Run ``main(argv)`` and exit with status 0, 1 after a :class:`RebarError`, or 130 after Ctrl-C.

    After :class:`Terminated`, the status is 128 plus the number of the signal.

    With ``--debug`` on the command line, the traceback is printed as well.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if signal.getsignal(signal.SIGINT) is _exit_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # paths may not be UTF-8, and the terminal may be ASCII
    try:
        main([argument for argument in arguments if argument != "--debug"])
    except RebarError as error:
        if debug:
            traceback.print_exc()
        if error.code == "rank-lost":
            _wait_for_torchrun()
        _report_to_torchrun(f"error: {error} [{error.code}]")
        if _rank() != 0:
            _wait_for_torchrun()
        prefix = f"[rank {_rank()}] " if "RANK" in os.environ else ""
        print(f"{prefix}error: {escape_lines(str(error))} [{error.code}]", file=sys.stderr, flush=True)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    except Terminated as error:
        with suppress(OSError):  # the terminal may be gone
            print(f"ended by {signal.Signals(error.signal_number).name}", file=sys.stderr, flush=True)
        sys.exit(128 + error.signal_number)
    sys.exit(0)
