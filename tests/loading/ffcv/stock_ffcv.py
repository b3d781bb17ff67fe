"""Stock FFCV's loader, patched so that it does not affect other tests in the same process.

``OSCacheManager.state_type`` marks numba's type of byte arrays as read-only, and numba has a single such type per
process. Code compiled for byte arrays before is then not found, or fails to compile, in the next test. The reader
compiled here declares no types, so numba infers them from its arguments.
"""

from ffcv.loader import Loader
from ffcv.memory_managers.os_cache import OSCacheManager

from rebar.loading.ffcv.graph import compile_read

__all__ = ["Loader"]

OSCacheManager.compile_reader = lambda self: compile_read()
