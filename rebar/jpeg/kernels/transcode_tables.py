"""Tables that exchange a file's Huffman codes for the standard ones: what is read, and what is written for it."""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.bit_writer import MOST_BITS
from rebar.jpeg.kernels.huffman import END_OF_BLOCK
from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.kernels.simd import load_uint32, load_uint64
from rebar.jpeg.status import Header
from rebar.jpeg.transcode_workspace import BLOCK_ENDS, SEVERAL_BITS, Codes
from rebar.jpeg.workspace import SHORT_BITS, SPECIFICATION_BYTES, Tables

U = np.uint64


@compiled
def set_coders(
    header: Header, tables: Tables, codes: Codes, ratios: NDArray[np.int32], coders: NDArray[np.uint64]
) -> None:
    """Fill ``coders`` and ``codes.exchange`` for the image whose tables these are."""
    long, short = U(tables.store.long.ctypes.data), U(tables.store.short.ctypes.data)
    for component in range(header.components):
        kind, slot = min(component, 1), tables.components[component, 5]
        dc_slot = tables.components[component, 4]
        coders[component, 0] = long + U(dc_slot << 17)
        coders[component, 1] = long + U(slot << 17)
        coders[component, 2] = U(codes.dc.ctypes.data) + U(kind << 10)
        coders[component, 3] = U(codes.ac.ctypes.data) + U(kind << 10)
        coders[component, 4] = U(codes.exchange.ctypes.data) + U(component << (SHORT_BITS + 3))
        coders[component, 5] = U(ratios.ctypes.data) + U(component << 8)
        coders[component, 6] = U(codes.several.ctypes.data) + U(component << (SEVERAL_BITS + 3))
        coders[component, 7] = short + U(dc_slot << (SHORT_BITS + 2))
        coders[component, 8] = U(codes.skips.ctypes.data) + U(kind << (SEVERAL_BITS + 1))
        coders[component, 9] = U(
            _is_same(codes.standard[0, kind], tables.store.specifications[dc_slot])
            and _is_same(codes.standard[1, kind], tables.store.specifications[slot])
        )
        if _is_known(codes.known[component], tables.store.specifications[slot]):
            continue
        for bits in range(1 << SHORT_BITS):
            entry = np.int64(tables.store.long[(slot << 16) | (bits << (16 - SHORT_BITS))])
            fits = 0 < entry >> 8 <= SHORT_BITS
            codes.exchange[component, bits] = exchange_entry(entry, coders[component, 3]) if fits else U(0)
        for bits in range(1 << SEVERAL_BITS):
            codes.several[component, bits] = _several_entry(U(bits) << U(64 - SEVERAL_BITS), coders[component, 4])


@compiled
def _is_same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    same = True
    for i in range(SPECIFICATION_BYTES):
        same = same and one[i] == other[i]
    return same


@compiled
def _is_known(known: NDArray[np.uint8], specification: NDArray[np.uint8]) -> bool:
    """Whether a row was made from this specification; it is noted as if it had been."""
    same = True
    for i in range(SPECIFICATION_BYTES):
        same = same and known[i] == specification[i]
        known[i] = specification[i]
    return same


@compiled
def _several_entry(buffer: np.uint64, exchange: np.uint64) -> np.uint64:
    """One of ``Codes.several``, by what stands in a component's row of ``Codes.exchange``."""
    read, advance, written, out, ends = U(0), U(0), U(0), U(0), U(0)
    while ends == U(0):
        found = load_uint64(exchange + ((buffer >> U(64 - SHORT_BITS)) << U(3)))
        total, size, step = found & U(63), (found >> U(8)) & U(63), (found >> U(16)) & U(255)
        wide = (found >> U(24)) & U(63)
        if found == U(0) or read + total > U(SEVERAL_BITS) or written + wide > U(MOST_BITS):
            break
        magnitude = ((buffer << (total - size)) >> U(1)) >> (U(63) - size)
        out = (out << wide) | ((found >> U(32)) << size) | magnitude
        written += wide
        read += total
        buffer <<= total
        if step == U(END_OF_BLOCK):
            ends = U(BLOCK_ENDS)
        else:
            advance += step
    return read | ends | (advance << U(8)) | (written << U(16)) | (out << U(32))


@compiled
def exchange_entry(entry: int, codes: np.uint64) -> np.uint64:
    """From the long table's entry to one of ``Codes.exchange``; ``codes`` is where the codes to write lie."""
    length, run, size = entry >> 8, (entry >> 4) & 15, entry & 15
    symbol = entry & 255
    advance = run + 1
    if size == 0 and run != 15:
        symbol, advance = 0, END_OF_BLOCK  # a run before the end means nothing in a sequential JPEG
    code = np.int64(load_uint32(codes + U(symbol << 2)))
    written = (code & 255) + size
    return U(length + size) | U(size << 8) | U(advance << 16) | U(written << 24) | U((code >> 8) << 32)
