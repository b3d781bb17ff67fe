"""Huffman lookup tables (ITU-T T.81, annex C and F.2.2), cached by the content of the DHT segment.

A *specification* is 272 bytes: the number of codes of each length 1 to 16, then the symbols, then zeros. It has two
tables:

- The *short* table is indexed by the next ``SHORT_BITS`` bits, uint32. Bits 0-5 are the length of code and magnitude,
  bits 8-15 the increment of the coefficient index (the run of zeros plus one, or ``END_OF_BLOCK``), bits 16-31 the
  coefficient. The entry is ``LONG`` if code and magnitude do not fit.
- The *long* table is indexed by the next 16 bits, uint16: the code's length in the high byte, its symbol in the low
  byte; zero for an invalid code.
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.status import CORRUPT_HEADER, OK, UNSUPPORTED
from rebar.jpeg.workspace import SHORT_BITS, SPECIFICATION_BYTES, TABLE_SLOTS, TableStore

LONG = 128
END_OF_BLOCK = 128
SLOT_SHIFT = SHORT_BITS + 2  # shift from a short table's byte offset to its slot
DC, AC = 0, 1
_MAX_DC_BITS, _MAX_AC_BITS = 11, 10  # of a magnitude in 8-bit images (T.81, tables F.1 and F.2)


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
