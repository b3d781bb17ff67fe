"""Environment of a run, for its log and report: command, commit, hardware and versions."""

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "numpy", "numba", "ffcv")
_SECRET = re.compile(r"token|secret|passw|api.?key|credential", re.IGNORECASE)


def environment() -> dict[str, str]:
    """Return the command (without secrets), commit, system, processor and package versions."""
    return {
        "command": " ".join(redact_secrets([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "code": _commit(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "processor": f"{_cpu_description()}, {len(os.sched_getaffinity(0))} usable cores",
        "packages": ", ".join(f"{name} {version}" for name in _PACKAGES if (version := _version(name))),
    }


def redact_secrets(argv: Sequence[str]) -> list[str]:
    """Replace the values of flags such as ``--hf-token`` with asterisks."""
    shown, hide_next = [], False
    for word in argv:
        flag, equals, _ = word.partition("=")
        if hide_next and not word.startswith("--"):
            shown.append("***")
        elif flag.startswith("--") and _SECRET.search(flag):
            shown.append(f"{flag}=***" if equals else word)
        else:
            shown.append(word)
        hide_next = flag.startswith("--") and not equals and bool(_SECRET.search(flag))
    return shown


def peak_host_gb() -> float:
    """Return the peak resident memory of this process in GB (10^9 bytes), including pages of mapped files."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_description() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


def _commit() -> str:
    """Return ``git describe`` of the code, with ``-dirty`` after local changes, or "" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
