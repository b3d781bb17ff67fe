"""Compile the kernels to an object file and a shared library: ``python -m rebar.jpeg.kernels.compile OBJECT_FILE``.

:mod:`rebar.jpeg.kernel_cache` runs this in a child process, because it imports numba.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding as llvm
from numba import carray, cfunc, types

from rebar.jpeg.kernel_arguments import DESCRIPTOR_FIELDS, prototype_arguments
from rebar.jpeg.kernel_cache import SYMBOL_PREFIX
from rebar.jpeg.kernels.crops import decode_crops
from rebar.jpeg.kernels.jit import pointer
from rebar.jpeg.kernels.transcode import read_header, transcode
from rebar.jpeg.transcoder import new_transcode_call
from rebar.storage.files import atomic_write

_PRIVATE = 0o600  # kernel_cache does not load files that other users can write to


def compile_kernels(path: Path) -> None:
    """Write the kernels' object file to ``path`` and, if there is a C linker, a shared library next to it."""
    content = _object_code()
    with tempfile.TemporaryDirectory() as folder:
        object_file, library = Path(folder, "kernel.o"), Path(folder, "kernel.so")
        object_file.write_bytes(content)
        linker = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        command = [str(linker), "-shared", "-o", str(library), str(object_file)]
        if linker and subprocess.run(command, capture_output=True).returncode == 0:
            _write_private(path.with_suffix(".so"), library.read_bytes())
    _write_private(path, content)  # last: its presence means that the compilation is complete


def _write_private(path: Path, content: bytes) -> None:
    with atomic_write(path) as (file,):
        os.fchmod(file.fileno(), _PRIVATE)
        file.write(content)


def entry_points() -> dict[str, Callable[[Any], None]]:
    """Return the kernels that Python calls, by name, as functions of their arguments' descriptors."""
    transcode_arguments = (new_transcode_call(1, 1),)
    return {
        "decode_crops": _entry_point(decode_crops, prototype_arguments()),
        "read_header": _entry_point(read_header, transcode_arguments),
        "transcode": _entry_point(transcode, transcode_arguments),
    }


def _entry_point(kernel: Any, arguments: tuple[Any, ...]) -> Callable[[Any], None]:
    """Generate a function that rebuilds the arguments from descriptors; numba cannot loop over nested tuples."""
    scope: dict[str, Any] = {"carray": carray, "pointer": pointer, "types": types, "kernel": kernel}
    field = 0

    def expression(value: Any) -> str:
        nonlocal field
        if not isinstance(value, np.ndarray):
            scope[type(value).__name__] = type(value)
            return f"{type(value).__name__}({', '.join(map(expression, value))})"
        shape = "".join(f"table[{field + 1 + axis}], " for axis in range(value.ndim))
        element = "boolean" if value.dtype == np.bool_ else value.dtype.name
        text = f"carray(pointer(table[{field}], types.{element}), ({shape}))"
        field += DESCRIPTOR_FIELDS
        return text

    exec(f"def call(table): kernel({', '.join(map(expression, arguments))})", scope)
    call: Callable[[Any], None] = scope["call"]
    return call


def _object_code() -> bytes:
    module = llvm.parse_assembly("")
    for name, entry_point in entry_points().items():
        module.link_in(_compiled_module(SYMBOL_PREFIX + name, entry_point))
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


def _compiled_module(symbol: str, entry_point: Callable[[Any], None]) -> Any:
    """Return an LLVM module that exports only the entry point, as ``symbol``."""
    options: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
    compiled = cfunc(types.void(types.CPointer(types.int64)), **options)(entry_point)
    module = llvm.parse_assembly(compiled.inspect_llvm().replace(compiled.native_name, symbol))
    # Internal linkage lets LLVM prove that the functions raise nothing, and remove the calls into the interpreter.
    for function in module.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
    return module


if __name__ == "__main__":
    compile_kernels(Path(sys.argv[1]))
