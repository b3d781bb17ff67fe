"""The tables that ITU-T T.81 gives as examples in its annex K, and that nearly every encoder writes.

Look-up tables for Huffman codes (ITU-T T.81, annex C and F.2.2), kept by the content of the DHT segment.

A table's *specification* is 272 bytes: how many codes of each length 1..16 there are, then the symbols, then
zeros. Most files of a data set share one set of specifications, so a decoder keeps the tables it met.

Two tables belong to a specification:

- the *short* one, by the next ``SHORT_BITS`` bits, uint32: bits 0–5 the length of code and magnitude
  together, bits 8–15 by how much the coefficient's number advances (one more than the zeros before it;
  ``END_OF_BLOCK`` where no more follow), bits 16–31 the coefficient. ``LONG`` where that does not fit: then
- the *long* one, by the next 16 bits, uint16: the code's length in the high byte, its symbol in the low one;
  zero where there is no such code.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.jit import compiled
from rebar.jpeg.status import CORRUPT_HEADER, OK, UNSUPPORTED
from rebar.jpeg.workspace import SHORT_BITS, SPECIFICATION_BYTES, TABLE_SLOTS, TableStore

LUMA, CHROMA = 0, 1

QUANTISATION = np.frombuffer(
    bytes.fromhex(
        "100b0c0e0c0a100e0d0e1211101318281a181616183123251d283a333d3c3933383740485c4e404457453738506d51575f626768673e"
        "4d71797064785c656763"
        "1112121815182f1a1a2f6342384263636363636363636363636363636363636363636363636363636363636363636363636363636363"
        "63636363636363636363"
    ),
    np.uint8,
).reshape(2, 64)
"""Tables K.1 and K.2, luma and chroma, in zigzag order."""

DC_CODES = tuple(
    bytes.fromhex(text)
    for text in (
        "00010501010101010100000000000000" + "000102030405060708090a0b",
        "00030101010101010101010000000000" + "000102030405060708090a0b",
    )
)
"""Tables K.3 and K.4, luma and chroma: the number of codes of each length, then the symbols, as in a DHT segment."""

AC_CODES = tuple(
    bytes.fromhex(text)
    for text in (
        "0002010303020403050504040000017d"
        "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a34353637"
        "38393a434445464748494a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3"
        "a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa",
        "00020102040403040705040400010277"
        "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a262728292a3536"
        "3738393a434445464748494a535455565758595a636465666768696a737475767778797a82838485868788898a92939495969798999a"
        "a2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa",
    )
)
"""Tables K.5 and K.6, luma and chroma, written in the same way."""


@functools.cache
def quantisation_at(quality: int) -> NDArray[np.int64]:
    """The steps ``[2, 64]`` (luma, chroma; zigzag order) that libjpeg uses at a quality of 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((QUANTISATION.astype(np.int64) * scale + 50) // 100, 1, 255)


def code_table(specification: bytes) -> NDArray[np.uint32]:
    """From symbol to code: uint32 ``[256]``, the code's bits shifted left by 8, with its length; 0 where none is."""
    table = np.zeros(256, np.uint32)
    code, at = 0, 16
    for length, count in enumerate(specification[:16], start=1):
        for symbol in specification[at : at + count]:
            table[symbol] = code << 8 | length
            code += 1
        at += count
        code <<= 1
    return table


LONG = 128
END_OF_BLOCK = 128
SLOT_SHIFT = SHORT_BITS + 2  # from a short table's address, relative to the first one's, to its slot
DC, AC = 0, 1
_MOST_DC_BITS, _MOST_AC_BITS = 11, 10  # of a magnitude in 8-bit images (T.81, tables F.1 and F.2)


@compiled
def find_tables(store: TableStore, specification: NDArray[np.uint8], table_class: int) -> tuple[int, int]:
    """``(status, slot)`` of a specification's tables, built first where they are new.

    The slots returned last stay valid: an image needs six at most, of sixteen.
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
    filled, symbol_at = 0, 16
    for length in range(1, 17):
        codes = np.int64(specification[length - 1])
        wide = 1 << (16 - length)
        if filled + codes * wide > table.size or symbol_at + codes > SPECIFICATION_BYTES:
            return CORRUPT_HEADER
        for _ in range(codes):
            symbol = np.int64(specification[symbol_at])
            size = symbol & 15 if table_class == AC else symbol
            if size > (_MOST_AC_BITS if table_class == AC else _MOST_DC_BITS):
                return UNSUPPORTED
            table[filled : filled + wide] = (length << 8) | symbol
            filled += wide
            symbol_at += 1
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
