"""How much memory a process has used at most."""

import resource
import sys


def peak_host_gb() -> float:
    """Peak resident memory of this process, in 10^9 bytes (pages of mapped files included)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
