"""FFCV, imported without what its import does to others."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rebar.errors import RebarError

_compiling = threading.Lock()


@functools.cache
def ffcv_compiler() -> Any:
    """FFCV's Compiler. Importing it sets torch to one thread; here torch keeps its threads.

    Raises RebarError where FFCV is not installed.
    """
    import torch

    torch_threads = torch.get_num_threads()
    try:
        from ffcv.pipeline.compiler import Compiler
    except ImportError as error:
        raise RebarError(
            f"FFCV cannot be imported ({error}), and these pipelines need it: install it as scripts/setup.sh does, "
            "or use Loader(..., cropper=...), which does without"
        ) from None
    finally:
        torch.set_num_threads(torch_threads)
    return Compiler


@contextmanager
def one_thread_code() -> Iterator[None]:
    """FFCV compiles for one thread within: code that needs none of numba's threading layers.

    Those crash when two loaders run at once; our threads run one batch each instead.
    """
    compiler = ffcv_compiler()
    with _compiling:
        before = compiler.num_threads
        compiler.num_threads = 1
        try:
            yield
        finally:
            compiler.num_threads = before
