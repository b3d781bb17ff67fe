"""How far something long has come, in bytes: a line that changes on a terminal, a line a minute in a log."""

import sys
import threading
import time

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 60.0
MIB, GIB = 2**20, 2**30


class Progress:
    """Counts bytes, from any thread, and tells now and then."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done = what, total, done
        self._began = self._told = time.monotonic()
        self._before = done
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many bytes more."""
        with self._lock:
            self.done += count
            pause = TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
            if time.monotonic() - self._told >= pause:
                self._tell("\r\033[K", "")

    def end(self) -> None:
        """Tell the sum, where there was something to tell."""
        with self._lock:
            if self.total:
                self._tell("\r\033[K", "\n")

    def _tell(self, before: str, after: str) -> None:
        self._told = time.monotonic()
        rate = (self.done - self._before) / max(self._told - self._began, 1e-9)
        left = f", {(self.total - self.done) / rate / 60:.0f} min left" if rate and self.done < self.total else ""
        share = f"{100 * self.done / max(self.total, 1):3.0f} %"
        text = f"  {self.what}: {share} of {self.total / GIB:.2f} GiB, {rate / MIB:.0f} MiB/s{left}"
        if sys.stderr.isatty():
            print(f"{before}{text}", end=after, file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
