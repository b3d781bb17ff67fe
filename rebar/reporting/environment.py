"""What a run ran on and with: for its log and its report."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "numpy", "numba", "ffcv")
_SECRET = re.compile(r"token|secret|passw|api.?key|credential", re.IGNORECASE)


def environment() -> dict[str, str]:
    """Command, code, machine and versions, in words; secrets on the command line are left out."""
    return {
        "command": " ".join(without_secrets([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "code": _commit(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores usable",
        "packages": ", ".join(f"{name} {version}" for name in _PACKAGES if (version := _version(name))),
    }


def without_secrets(words: Sequence[str]) -> list[str]:
    """A command line in which the values of what looks like a secret's flag are stars."""
    shown, hide_next = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        if hide_next and not word.startswith("--"):
            shown.append("***")
        elif flag.startswith("--") and _SECRET.search(flag):
            shown.append(f"{flag}=***" if equals else word)
        else:
            shown.append(word)
        hide_next = flag.startswith("--") and not equals and bool(_SECRET.search(flag))
    return shown


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


def _commit() -> str:
    """The commit of the code, and whether it was changed since; empty where that is not known."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
