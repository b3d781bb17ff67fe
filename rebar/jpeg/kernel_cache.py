"""Arrays as compiled code gets them: a table of where each lies and how long its sides are.

Every array is C-contiguous; which place in the table has which element type and how many dimensions is fixed,
by :func:`prototype`, when the kernel is compiled.

The kernels' machine code: compiled by numba once a machine, from then on loaded without it.

numba can keep compiled code by itself, but then loading takes numba: a third of a second and 100 MB in every
process. So its code is linked to a shared library that needs nothing, and found by what it was made from: this
package's sources, the versions of numba and LLVM, and the processor. It is made in a process of its own, by one
process however many start together. Where there is no C compiler to link with, LLVM loads the object file.
"""

import ctypes
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.workspace import (
    AxisWeights,
    RegionScratch,
    ResampleScratch,
    Tables,
    new_axis_weights,
    new_region_scratch,
    new_resample_scratch,
    new_table_store,
    new_tables,
)
from rebar.storage.atomic_write import atomic_write
from rebar.storage.cache_paths import user_cache

FIELDS = 5
"""int64 numbers an array: its address and up to four sides."""


class Call(NamedTuple):
    """What changes from call to call.

    ``data`` uint8; of each crop where its JPEG starts and ends, the image's height and width (``shapes`` int64
    ``[n, 2]``, zeros: any), its box int64 ``[n, 4]`` and whether it is mirrored, bool; ``out`` uint8
    ``[n, height, width, 3]`` and ``statuses`` uint8 ``[n]`` are filled.
    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    shapes: NDArray[np.int64]
    boxes: NDArray[np.int64]
    flips: NDArray[np.bool_]
    out: NDArray[np.uint8]
    statuses: NDArray[np.uint8]


class Workspace(NamedTuple):
    """What stays: a decoder's scratch. ``bits`` is uint8 ``[2, longest JPEG + BITS_ROOM]``."""

    tables: Tables
    region: RegionScratch
    bits: NDArray[np.uint8]
    taps: AxisWeights
    resample: ResampleScratch


def prototype() -> tuple[Call, Workspace]:
    """Arguments of the right types, of no use otherwise."""
    number, byte = np.zeros(1, np.int64), np.zeros(1, np.uint8)
    pairs, boxes = np.zeros((1, 2), np.int64), np.zeros((1, 4), np.int64)
    images = np.zeros((1, 1, 1, 3), np.uint8)
    call = Call(byte, number, number, pairs, boxes, np.zeros(1, np.bool_), images, byte)
    tables, region = new_tables(new_table_store()), new_region_scratch(1, 1)
    bits, taps = np.zeros((2, 1), np.uint8), new_axis_weights(1, 1, 1, 1)
    return call, Workspace(tables, region, bits, taps, new_resample_scratch(1, 1))


def describe(arguments: Any) -> NDArray[np.int64]:
    """The descriptors of a nest of named tuples of arrays, int64 ``[n, FIELDS]``."""
    arrays = list(arrays_of(arguments))
    table = np.zeros((len(arrays), FIELDS), np.int64)
    for row, array in zip(table, arrays, strict=True):
        assert array.flags.c_contiguous
        row[0] = array.__array_interface__["data"][0]
        row[1 : 1 + array.ndim] = array.shape
    return table


def arrays_of(arguments: Any) -> Iterator[NDArray[Any]]:
    """The arrays of a nest of named tuples, in order."""
    if isinstance(arguments, np.ndarray):
        yield arguments
        return
    for argument in arguments:
        yield from arrays_of(argument)


def kinds(arguments: Any) -> list[tuple[Any, int]]:
    """Element type and number of dimensions of each array."""
    return [(array.dtype, array.ndim) for array in arrays_of(arguments)]


_PREFIX = "rebar_"
_PACKAGE = Path(__file__).parent
_ROOT = _PACKAGE.parent.parent

Kernel = Callable[[int], None]
"""Called with the address of the descriptors; does not hold the interpreter lock."""


@functools.cache
def load_kernel(name: str = "decode_crops") -> Kernel:
    """Return a kernel of :func:`rebar.jpeg.kernels.entries.entries` by name. Compile all kernels first if needed.

    Raises subprocess.CalledProcessError where it cannot be compiled: numba has said why.
    """
    made = _made_once(compiled_file())
    try:
        return _load_library(made.with_suffix(".so"), _PREFIX + name)
    except OSError:  # it could not be linked here, or may not be run from there
        return _load_object(made, _PREFIX + name)


def _made_once(path: Path) -> Path:
    if not path.exists():
        with _alone(path.with_suffix(".lock")):
            if not path.exists():
                print("compiling the JPEG kernels for this processor, once: a minute", file=sys.stderr, flush=True)
                subprocess.run([sys.executable, "-m", "rebar.jpeg.kernel_cache", str(path)], cwd=_ROOT, check=True)
    return path


def _load_library(path: Path, symbol: str) -> Kernel:
    function = getattr(ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL), symbol)
    function.argtypes, function.restype = [ctypes.c_void_p], None
    kernel: Kernel = function
    return kernel


def _load_object(path: Path, symbol: str) -> Kernel:
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    engine = llvm.create_mcjit_compiler(
        llvm.parse_assembly(""), llvm.Target.from_default_triple().create_target_machine()
    )
    engine.add_object_file(llvm.ObjectFileRef.from_path(str(path)))
    engine.finalize_object()
    function: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address(symbol))
    function.engine = engine  # owns the code
    kernel: Kernel = function
    return kernel


# ------------------------------------------------------------------ making it


def make(path: Path) -> None:
    """Compile the kernels to an object file and, where it can be linked, to a library beside it."""
    content = _object_code()
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder, "kernel.o"), Path(folder, "kernel.so")
        parts[0].write_bytes(content)
        linker = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if (
            linker
            and subprocess.run([linker, "-shared", "-o", parts[1], parts[0]], capture_output=True).returncode == 0
        ):
            with atomic_write(path.with_suffix(".so")) as (file,):
                file.write(parts[1].read_bytes())
    with atomic_write(path) as (file,):  # the last: where it is, all is
        file.write(content)


def _object_code() -> bytes:
    from llvmlite import binding as llvm

    from rebar.jpeg.kernels.entries import entries

    module = llvm.parse_assembly("")
    for name, entry in entries().items():
        module.link_in(_alone_in_module(_PREFIX + name, entry))
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="default",
    )
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    code: bytes = machine.emit_object(module)
    return code


def _alone_in_module(symbol: str, entry: Callable[[Any], None]) -> Any:
    """An LLVM module that shows nothing but the entry, as ``symbol``."""
    from llvmlite import binding as llvm
    from numba import cfunc, types

    options: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
    compiled = cfunc(types.void(types.CPointer(types.int64)), **options)(entry)
    module = llvm.parse_assembly(compiled.inspect_llvm().replace(compiled.native_name, symbol))
    # Seen by nobody else, functions turn out never to fail, and what would call the interpreter then goes.
    for function in module.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
    return module


# ------------------------------------------------------------------ where it is kept


def _digest() -> str:
    """Of all that the machine code depends on."""
    digest = hashlib.sha256()
    for source in sorted(_PACKAGE.rglob("*.py")):
        digest.update(source.read_bytes())
    versions = [importlib.metadata.version(package) for package in ("numba", "llvmlite")]
    digest.update(repr([*versions, sys.platform, platform.machine(), _processor()]).encode())
    return digest.hexdigest()[:20]


def _processor() -> str:
    """Its model and what it can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(line for line in lines if line.startswith(told))


def compiled_file() -> Path:
    """Where the kernels' object file is, or will be."""
    return _folder() / f"kernels-{_digest()}.o"


@functools.cache
def _folder() -> Path:
    """Where numba is told to keep its own, else beside the sources, else in the user's cache, else for this run."""
    told = os.environ.get("NUMBA_CACHE_DIR")
    for folder in [Path(told)] if told else [_PACKAGE / "__pycache__", user_cache() / "kernels"]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="rebar-kernels-"))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in here: the system lets its lock go when it ends, however it does."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    make(Path(sys.argv[1]))
