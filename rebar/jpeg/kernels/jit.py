"""numba decorators for the kernels, and vector operations for them, written as LLVM IR.

Kernels run without the GIL and bounds checks, with NumPy's error model. Production code runs those that
:mod:`rebar.jpeg.kernel_cache` compiles ahead of time. Tests and benchmarks call single functions, which numba compiles
and caches.

LLVM does not auto-vectorize the shuffles of a DCT or of interleaved pixels. Vector IR compiles to AVX2, AVX-512 and
NEON. Vector operations take addresses and sizes as uint64; loads and stores may be unaligned.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from rebar.jpeg.kernel_cache import sources_digest

Value = Any  # an llvmlite value
Builder = Any  # an llvmlite IRBuilder

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))


def vector(element: ir.Type, lanes: int) -> ir.Type:
    return ir.VectorType(element, lanes)


def constant(element: ir.Type, lanes: int, value: int) -> Value:
    """Return a vector with ``value`` in every lane."""
    return ir.Constant(vector(element, lanes), [ir.Constant(element, value)] * lanes)


def offset(builder: Builder, address: Value, number_of_bytes: int) -> Value:
    return builder.add(address, ir.Constant(I64, number_of_bytes))


def step(builder: Builder, address: Value, stride: Value, times: int) -> Value:
    return builder.add(address, builder.mul(stride, ir.Constant(I64, times)))


def load(builder: Builder, address: Value, element: ir.Type, lanes: int) -> Value:
    loaded = builder.load(builder.inttoptr(address, vector(element, lanes).as_pointer()))
    loaded.align = 1
    return loaded


def load_scalar(builder: Builder, address: Value, element: ir.Type) -> Value:
    loaded = builder.load(builder.inttoptr(address, element.as_pointer()))
    loaded.align = 1
    return loaded


def store(builder: Builder, value: Value, address: Value) -> None:
    stored = builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
    stored.align = 1


def shuffle(builder: Builder, first: Value, second: Value, lanes: Sequence[int]) -> Value:
    """Select lanes from two vectors; the lanes of ``second`` are numbered after those of ``first``."""
    mask = ir.Constant(vector(I32, len(lanes)), [ir.Constant(I32, lane) for lane in lanes])
    return builder.shuffle_vector(first, second, mask)


def broadcast(builder: Builder, scalar: Value, lanes: int) -> Value:
    undefined = ir.Constant(vector(scalar.type, lanes), ir.Undefined)
    return shuffle(builder, builder.insert_element(undefined, scalar, ir.Constant(I32, 0)), undefined, [0] * lanes)


def clamp_to_byte(builder: Builder, value: Value) -> Value:
    """Clamp every lane to 0..255, without changing its type."""
    element, lanes = value.type.element, value.type.count
    low, high = constant(element, lanes, 0), constant(element, lanes, 255)
    value = builder.select(builder.icmp_signed("<", value, low), low, value)
    return builder.select(builder.icmp_signed(">", value, high), high, value)


def transpose8(builder: Builder, rows: Sequence[Value]) -> list[Value]:
    """Transpose eight vectors of eight lanes; longer vectors are transposed in groups of eight lanes.

    Only the last of the three rounds crosses the halves of a group.
    """
    eights = rows[0].type.count // 8

    def pick(first: Value, second: Value, lanes: Sequence[int]) -> Value:
        """Select lanes of each group of eight; 8 to 15 are those of ``second``."""
        places = [8 * e + lane % 8 + lane // 8 * 8 * eights for e in range(eights) for lane in lanes]
        return shuffle(builder, first, second, places)

    low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    pairs = [pick(rows[i], rows[i + 1], lanes) for i in (0, 2, 4, 6) for lanes in (low, high)]
    low, high = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    fours = [pick(pairs[i], pairs[j], lanes) for i, j in ((0, 2), (1, 3), (4, 6), (5, 7)) for lanes in (low, high)]
    low, high = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
    return [pick(fours[i], fours[i + 4], lanes) for lanes in (low, high) for i in range(4)]


def _intrinsic(function: Callable[..., Any]) -> Any:
    """Apply numba's ``intrinsic``, which is untyped."""
    return intrinsic(function)


def operation(arguments: int) -> Callable[[Callable[..., None]], Any]:
    """Turn ``emit(builder, *arguments)``, which emits IR, into a function of uint64 arguments for kernels."""

    def wrap(emit: Callable[..., None]) -> Any:
        def implementation() -> Any:
            def generate(context: Any, builder: Builder, signature: Any, values: Sequence[Value]) -> Value:
                emit(builder, *values)
                return context.get_dummy_value()

            return types.void(*[types.uint64] * arguments), generate

        # numba reads the number of arguments from the function's signature.
        names = ", ".join(f"argument{i}" for i in range(arguments))
        scope: dict[str, Any] = {"implementation": implementation}
        exec(f"def {emit.__name__}(typingctx, {names}): return implementation()", scope)
        return _intrinsic(scope[emit.__name__])

    return wrap


@_intrinsic
def pointer(typingctx: Any, address: Any, element: Any) -> Any:
    """Return the int64 ``address`` as a pointer to numba's type ``element``."""

    def generate(context: Any, builder: Builder, signature: Any, values: Sequence[Value]) -> Value:
        return builder.inttoptr(values[0], context.get_data_type(element.dtype).as_pointer())

    return types.CPointer(element.dtype)(address, element), generate


@_intrinsic
def load_big_endian(typingctx: Any, address: Any) -> Any:
    """Load eight bytes in big-endian order."""

    def generate(context: Any, builder: Builder, signature: Any, values: Sequence[Value]) -> Value:
        return builder.bswap(load_scalar(builder, values[0], I64))

    return types.uint64(types.uint64), generate


def _load(element: ir.Type, kind: Any, name: str) -> Any:
    def of_type(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Builder, signature: Any, values: Sequence[Value]) -> Value:
            return load_scalar(builder, values[0], element)

        return kind(types.uint64), generate

    of_type.__name__ = name
    return _intrinsic(of_type)


load_int16 = _load(I16, types.int16, "load_int16")
load_uint8 = _load(I8, types.uint8, "load_uint8")
load_uint16 = _load(I16, types.uint16, "load_uint16")
load_uint32 = _load(I32, types.uint32, "load_uint32")
load_uint64 = _load(I64, types.uint64, "load_uint64")


def _store(kind: Any, name: str) -> Any:
    def of_type(typingctx: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Builder, signature: Any, values: Sequence[Value]) -> Value:
            store(builder, values[1], values[0])
            return context.get_dummy_value()

        return types.void(types.uint64, kind), generate

    of_type.__name__ = name
    return _intrinsic(of_type)


store_int16 = _store(types.int16, "store_int16")
store_uint8 = _store(types.uint8, "store_uint8")


@operation(2)
def store_big_endian(builder: Builder, address: Value, value: Value) -> None:
    """Store eight bytes in big-endian order."""
    store(builder, builder.bswap(value), address)


@_intrinsic
def marker_bytes(typingctx: Any, address: Any) -> Any:
    """Return a bit mask of the 32 bytes at ``address`` that are 0xFF, with the first byte in the lowest bit."""

    def generate(context: Any, builder: Builder, signature: Any, values: Sequence[Value]) -> Value:
        equal = builder.icmp_unsigned("==", load(builder, values[0], I8, 32), constant(I8, 32, 255))
        return builder.zext(builder.bitcast(equal, I32), I64)

    return types.uint64(types.uint64), generate


@_intrinsic
def trailing_zeros(typingctx: Any, bits: Any) -> Any:
    """Return the index of the lowest set bit, or 64 for zero."""

    def generate(context: Any, builder: Builder, signature: Any, values: Sequence[Value]) -> Value:
        return builder.cttz(values[0], ir.Constant(I1, 0))

    return types.uint64(types.uint64), generate


@operation(2)
def copy_32_bytes(builder: Builder, source: Value, out: Value) -> None:
    store(builder, load(builder, source, I8, 32), out)


@operation(1)
def clear_block(builder: Builder, address: Value) -> None:
    """Set 64 int16 to zero."""
    for half in (0, 64):
        store(builder, constant(I16, 32, 0), offset(builder, address, half))


_SOURCES_DIGEST = sources_digest().hex()


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that other kernels call."""
    return njit(nogil=True, boundscheck=False, error_model="numpy")(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function that is called for every block or symbol, and force LLVM to inline it."""
    return njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, and cache the machine code on disk.

    numba invalidates a cached function when its own source file changes. A kernel depends on the entire package, so
    the package's digest replaces the file's timestamp. Call each kernel with one signature only: two processes that
    save two signatures at once can choose the same file name.
    """
    dispatcher = njit(nogil=True, boundscheck=False, error_model="numpy", cache=True)(function)
    cache_file: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = _SOURCES_DIGEST
    return dispatcher


def read_only(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a read-only view of ``data``, because numba compiles writable and read-only arrays separately."""
    view = np.ascontiguousarray(data).view(np.ndarray)[:]
    view.flags.writeable = False
    return view
