"""Build the tables that map a file's Huffman codes to the standard ones."""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.huffman import END_OF_BLOCK
from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.kernels.simd import load_uint32, load_uint64
from rebar.jpeg.status import Header
from rebar.jpeg.transcode_workspace import BLOCK_ENDS, MAX_ENTRY_BITS, MULTI_SYMBOL_BITS, Codes
from rebar.jpeg.workspace import SHORT_BITS, SPECIFICATION_BYTES, Tables

U = np.uint64


@compiled
def set_coders(
    header: Header, tables: Tables, codes: Codes, ratios: NDArray[np.int32], coders: NDArray[np.uint64]
) -> None:
    """Fill ``coders`` with one Coder per component, and the tables in ``codes`` that changed since the last image."""
    long, short = U(tables.store.long.ctypes.data), U(tables.store.short.ctypes.data)
    for component in range(header.components):
        kind, slot = min(component, 1), tables.components[component, 5]
        dc_slot = tables.components[component, 4]
        coders[component, 0] = long + U(dc_slot << 17)
        coders[component, 1] = long + U(slot << 17)
        coders[component, 2] = U(codes.dc.ctypes.data) + U(kind << 10)
        coders[component, 3] = U(codes.ac.ctypes.data) + U(kind << 10)
        coders[component, 4] = U(codes.symbols.ctypes.data) + U(component << (SHORT_BITS + 3))
        coders[component, 5] = U(ratios.ctypes.data) + U(component << 8)
        coders[component, 6] = U(codes.multi_symbols.ctypes.data) + U(component << (MULTI_SYMBOL_BITS + 3))
        coders[component, 7] = short + U(dc_slot << (SHORT_BITS + 2))
        coders[component, 8] = U(codes.skips.ctypes.data) + U(kind << (MULTI_SYMBOL_BITS + 1))
        coders[component, 9] = U(
            _is_same(codes.standard[0, kind], tables.store.specifications[dc_slot])
            and _is_same(codes.standard[1, kind], tables.store.specifications[slot])
        )
        if _update_known(codes.known[component], tables.store.specifications[slot]):
            continue
        for bits in range(1 << SHORT_BITS):
            entry = np.int64(tables.store.long[(slot << 16) | (bits << (16 - SHORT_BITS))])
            fits = 0 < entry >> 8 <= SHORT_BITS
            codes.symbols[component, bits] = symbol_entry(entry, coders[component, 3]) if fits else U(0)
        for bits in range(1 << MULTI_SYMBOL_BITS):
            codes.multi_symbols[component, bits] = _multi_symbol_entry(
                U(bits) << U(64 - MULTI_SYMBOL_BITS), coders[component, 4]
            )


@compiled
def _is_same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    same = True
    for i in range(SPECIFICATION_BYTES):
        same = same and one[i] == other[i]
    return same


@compiled
def _update_known(known: NDArray[np.uint8], specification: NDArray[np.uint8]) -> bool:
    """Return whether ``known`` equals the specification, and copy the specification to it."""
    same = True
    for i in range(SPECIFICATION_BYTES):
        same = same and known[i] == specification[i]
        known[i] = specification[i]
    return same


@compiled
def _multi_symbol_entry(buffer: np.uint64, symbols: np.uint64) -> np.uint64:
    """Return the ``Codes.multi_symbols`` entry of the bits in ``buffer``, using a row of ``Codes.symbols``."""
    read, advance, written, out, ends = U(0), U(0), U(0), U(0), U(0)
    while ends == U(0):
        found = load_uint64(symbols + ((buffer >> U(64 - SHORT_BITS)) << U(3)))
        total, size, step = found & U(63), (found >> U(8)) & U(63), (found >> U(16)) & U(255)
        code_length = (found >> U(24)) & U(63)
        if found == U(0) or read + total > U(MULTI_SYMBOL_BITS) or written + code_length > U(MAX_ENTRY_BITS):
            break
        magnitude = ((buffer << (total - size)) >> U(1)) >> (U(63) - size)
        out = (out << code_length) | ((found >> U(32)) << size) | magnitude
        written += code_length
        read += total
        buffer <<= total
        if step == U(END_OF_BLOCK):
            ends = U(BLOCK_ENDS)
        else:
            advance += step
    return read | ends | (advance << U(8)) | (written << U(16)) | (out << U(32))


@compiled
def symbol_entry(entry: int, codes: np.uint64) -> np.uint64:
    """Return the ``Codes.symbols`` entry of a long table's entry; ``codes`` is the address of the codes to write."""
    length, run, size = entry >> 8, (entry >> 4) & 15, entry & 15
    symbol = entry & 255
    advance = run + 1
    if size == 0 and run != 15:
        symbol, advance = 0, END_OF_BLOCK  # in a sequential JPEG, EOB has no run
    code = np.int64(load_uint32(codes + U(symbol << 2)))
    written = (code & 255) + size
    return U(length + size) | U(size << 8) | U(advance << 16) | U(written << 24) | U((code >> 8) << 32)
