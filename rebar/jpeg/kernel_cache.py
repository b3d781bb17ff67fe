"""Load the JPEG kernels from a cache of shared libraries. Compile them ahead of time if they are not cached.

With numba's own cache, every process would import numba, which takes a third of a second and 100 MB. The cache key
consists of the sources of this package, the versions of numba and llvmlite, and the CPU.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rebar.errors import RebarError
from rebar.storage.files import user_cache

SYMBOL_PREFIX = "rebar_"
_PACKAGE = Path(__file__).parent
_ROOT = _PACKAGE.parent.parent

Kernel = Callable[[int], None]
"""A compiled kernel. Takes the address of its arguments' descriptors; runs without the GIL."""


@functools.cache
def load_kernel(name: str = "decode_crops") -> Kernel:
    """Load a kernel of :func:`rebar.jpeg.kernels.compile.entry_points`, after compiling all of them if needed.

    Raises RebarError if they cannot be compiled; numba prints the reason to stderr.
    """
    path = object_path()
    if not _is_trusted(path):
        _compile_once(path)
    library = path.with_suffix(".so")
    if _is_trusted(library):
        try:
            return _load_library(library, SYMBOL_PREFIX + name)
        except OSError:  # on a file system mounted noexec, for example
            pass
    return _load_object(path, SYMBOL_PREFIX + name)


def object_path() -> Path:
    """Return the path of the kernels' object file, which need not exist yet."""
    return kernel_folder() / f"kernels-{cache_key()}.o"


def cache_key(package: Path = _PACKAGE) -> str:
    """Return a digest of all inputs of the compiled code: sources, compiler versions and CPU."""
    digest = hashlib.sha256(sources_digest(package))
    versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    digest.update(repr([*versions, sys.platform, platform.machine(), _cpu_description()]).encode())
    return digest.hexdigest()[:20]


def sources_digest(package: Path = _PACKAGE) -> bytes:
    """Return a SHA-256 digest of all Python sources below a folder and their names."""
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        content = source.read_bytes()
        digest.update(f"{source.relative_to(package).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.digest()


def _cpu_description() -> str:
    """Return the CPU's model and instruction set extensions, as reported by the operating system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    fields = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(line for line in lines if line.startswith(fields))


@functools.cache
def kernel_folder() -> Path:
    """Return the first folder that can be created and that no other user can write to.

    Tries ``NUMBA_CACHE_DIR`` if it is set, otherwise the folder of the sources; then the user's cache; then a temporary
    folder for this process.
    """
    configured = os.environ.get("NUMBA_CACHE_DIR")
    for parent in (Path(configured) if configured else _PACKAGE / "__pycache__", user_cache()):
        folder = parent / "jpeg-kernels"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if _others_can_replace_files(parent):
                continue
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        if _is_trusted(folder) and os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="rebar-kernels-"))


def _is_trusted(path: Path) -> bool:
    """Return whether a file or folder exists, belongs to this user or root, and is not writable by other users."""
    try:
        status = path.lstat()
    except OSError:
        return False
    is_plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return is_plain and status.st_uid in (os.geteuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _others_can_replace_files(folder: Path) -> bool:
    """Return whether every user can rename files of others in a folder; not if it has the sticky bit, as ``/tmp``."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _compile_once(path: Path) -> None:
    """Compile the kernels in a child process, unless another process has compiled them."""
    from filelock import FileLock

    with FileLock(path.with_suffix(".lock")):
        if _is_trusted(path):
            return
        print("compiling the JPEG kernels for this CPU; this takes about a minute", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "rebar.jpeg.kernels.compile", str(path)]
        if subprocess.run(command, cwd=_ROOT).returncode != 0:
            raise RebarError(
                "JPEG kernels: compilation failed on this machine; numba's error is above. Run "
                "'python -m rebar.doctor' to check the installation, or use --write-mode raw.",
                code="jpeg-kernels-not-compiled",
            )


def _load_library(path: Path, symbol: str) -> Kernel:
    function = getattr(ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL), symbol)
    function.argtypes, function.restype = [ctypes.c_void_p], None
    kernel: Kernel = function
    return kernel


def _load_object(path: Path, symbol: str) -> Kernel:
    """Load a kernel from the object file, which LLVM links in memory, if there is no shared library."""
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
