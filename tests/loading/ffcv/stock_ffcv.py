"""FFCV's own loader, for tests in one process with others.

``OSCacheManager.state_type`` marks numba's type of a byte array as read-only, and numba has one such type for the whole
process: what was compiled for byte arrays before is then not found again, or fails to compile, in whatever test comes
next. The reader that is compiled here says nothing about types; numba sees for itself what it is given.
"""

from ffcv.loader import Loader
from ffcv.memory_managers.os_cache import OSCacheManager

from rebar.loading.ffcv.graph import compile_read

__all__ = ["Loader"]

OSCacheManager.compile_reader = lambda self: compile_read()
