"""Huffman lookup tables (ITU-T T.81, annex C and F.2.2), cached by the content of the DHT segment.

A *specification* is 272 bytes: the number of codes of each length 1 to 16, then the symbols, then zeros. It has two
tables:

- The *short* table is indexed by the next ``SHORT_BITS`` bits, uint32. Bits 0-5 are the length of code and magnitude,
  bits 8-15 the increment of the coefficient index (the run of zeros plus one, or ``END_OF_BLOCK``), bits 16-31 the
  coefficient. The entry is ``LONG`` if code and magnitude do not fit.
- The *long* table is indexed by the next 16 bits, uint16: the code's length in the high byte, its symbol in the low
  byte; zero for an invalid code.

To transcode, further tables map a file's codes to the standard ones (:class:`rebar.jpeg.transcoder.Codes`).
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.format import CORRUPT_HEADER, OK, UNSUPPORTED, Header
from rebar.jpeg.kernel_arguments import SHORT_BITS, SPECIFICATION_BYTES, TABLE_SLOTS, Tables, TableStore
from rebar.jpeg.kernels.jit import compiled, load_uint32, load_uint64
from rebar.jpeg.transcoder import BLOCK_ENDS, MAX_ENTRY_BITS, MULTI_SYMBOL_BITS, Codes

U = np.uint64
LONG = 128
END_OF_BLOCK = 128
SLOT_SHIFT = SHORT_BITS + 2  # shift from a short table's byte offset to its slot
DC, AC = 0, 1
_MAX_DC_BITS, _MAX_AC_BITS = 11, 10  # magnitudes in 8-bit images (T.81, tables F.1 and F.2)


@compiled
def find_tables(store: TableStore, specification: NDArray[np.uint8], table_class: int) -> tuple[int, int]:
    """Return the status and the slot of a specification's tables; build them if they are not cached.

    The slots returned for one image stay valid while it is decoded, because it needs at most six of the sixteen.
    """
    oldest, now = 0, store.last_use[0]
    for slot in range(1, TABLE_SLOTS):
        oldest = slot if store.last_use[slot] < store.last_use[oldest] else oldest
        now = max(now, store.last_use[slot])
    now += 1
    for slot in range(TABLE_SLOTS):
        if store.classes[slot] == table_class:
            same = True
            for i in range(SPECIFICATION_BYTES):
                if store.specifications[slot, i] != specification[i]:
                    same = False
                    break
            if same:
                store.last_use[slot] = now
                return OK, slot
    slot = oldest
    store.classes[slot] = 255
    status = _build_long(specification, table_class, store.long[slot << 16 : (slot + 1) << 16])
    if status != OK:
        return status, 0
    _build_short(
        store.long[slot << 16 : (slot + 1) << 16],
        table_class,
        store.short[slot << SHORT_BITS : (slot + 1) << SHORT_BITS],
    )
    for i in range(SPECIFICATION_BYTES):
        store.specifications[slot, i] = specification[i]
    store.classes[slot] = table_class
    store.last_use[slot] = now
    return OK, slot


@compiled
def _build_long(specification: NDArray[np.uint8], table_class: int, table: NDArray[np.uint16]) -> int:
    filled, symbol_index = 0, 16
    for length in range(1, 17):
        codes = np.int64(specification[length - 1])
        width = 1 << (16 - length)
        if filled + codes * width > table.size or symbol_index + codes > SPECIFICATION_BYTES:
            return CORRUPT_HEADER
        for _ in range(codes):
            symbol = np.int64(specification[symbol_index])
            size = symbol & 15 if table_class == AC else symbol
            if size > (_MAX_AC_BITS if table_class == AC else _MAX_DC_BITS):
                return UNSUPPORTED
            table[filled : filled + width] = (length << 8) | symbol
            filled += width
            symbol_index += 1
    table[filled:] = 0
    return OK


@compiled
def _build_short(long: NDArray[np.uint16], table_class: int, table: NDArray[np.uint32]) -> None:
    for bits in range(1 << SHORT_BITS):
        entry = np.int64(long[bits << (16 - SHORT_BITS)])
        length, run, size = entry >> 8, (entry >> 4) & 15, entry & 15
        total = length + size
        if length == 0 or total > SHORT_BITS:
            table[bits] = LONG
            continue
        value, advance = 0, run + 1
        if size > 0:
            value = (bits >> (SHORT_BITS - total)) & ((1 << size) - 1)
            if value < 1 << (size - 1):
                value -= (1 << size) - 1
        elif table_class == AC and run < 15:
            advance = END_OF_BLOCK
        table[bits] = np.uint32(((value & 0xFFFF) << 16) | (advance << 8) | total)


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
