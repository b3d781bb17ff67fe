"""Huffman lookup tables agree with a bit-by-bit reference, and invalid specifications are refused."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rebar.jpeg.format import Status
from rebar.jpeg.kernel_arguments import SHORT_BITS, SPECIFICATION_BYTES, TableStore, new_table_store
from rebar.jpeg.kernels.huffman import AC, DC, END_OF_BLOCK, LONG, find_tables
from rebar.jpeg.kernels.jit import kernel


@kernel
def _find(store: TableStore, specification: NDArray[np.uint8], table_class: int) -> tuple[int, int]:
    return find_tables(store, specification, table_class)


def specification(counts: list[int], symbols: list[int]) -> NDArray[np.uint8]:
    content = np.zeros(SPECIFICATION_BYTES, np.uint8)
    content[: len(counts)] = counts
    content[16 : 16 + len(symbols)] = symbols
    return content


def codes(counts: list[int], symbols: list[int]) -> dict[str, int]:
    """Return the symbol of each code as a string of bits (ITU-T T.81, figures C.1 and C.2)."""
    found, code, remaining = {}, 0, iter(symbols)
    for length, count in enumerate(counts, 1):
        for _ in range(count):
            found[f"{code:0{length}b}"] = next(remaining)
            code += 1
        code <<= 1
    return found


COUNTS = [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 20]
SYMBOLS = [0x01, 0x02, 0x03, 0x00, 0xF0, *(run << 4 | size for run in range(16) for size in range(1, 11))][
    : sum(COUNTS)
]


def test_find_tables_agrees_with_bitwise_decoding() -> None:
    store = new_table_store()
    status, slot = _find(store, specification(COUNTS, SYMBOLS), AC)
    assert status == Status.OK
    short = store.short[slot << SHORT_BITS :][: 1 << SHORT_BITS]
    long = store.long[slot << 16 :][: 1 << 16]
    known = codes(COUNTS, SYMBOLS)
    rng = np.random.default_rng(0)
    for bits in [f"{int(number):016b}" for number in rng.integers(0, 1 << 16, 3000)]:
        symbol = next((known[bits[:n]] for n in range(1, 17) if bits[:n] in known), None)
        length = next((n for n in range(1, 17) if bits[:n] in known), 0)
        assert int(long[int(bits, 2)]) == (length << 8 | (symbol or 0))
        entry = int(short[int(bits[:SHORT_BITS], 2)])
        if symbol is None or length + (symbol & 15) > SHORT_BITS:
            assert entry == LONG
            continue
        run, size = symbol >> 4, symbol & 15
        value = int(bits[length : length + size] or "0", 2)
        value -= (1 << size) - 1 if size and bits[length] == "0" else 0
        advance = END_OF_BLOCK if size == 0 and run < 15 else run + 1
        assert entry == ((value & 0xFFFF) << 16 | advance << 8 | (length + size))


def test_find_tables_caches_by_content_and_class_and_evicts_the_oldest() -> None:
    store = new_table_store()
    slots = [_find(store, specification([0, 1], [symbol]), DC)[1] for symbol in range(10)]
    assert len(set(slots)) == 10
    assert [_find(store, specification([0, 1], [symbol]), DC)[1] for symbol in range(10)] == slots
    assert _find(store, specification([0, 1], [3]), AC)[1] not in slots
    for symbol in range(20):
        _find(store, specification([0, 0, 1], [symbol % 11]), AC)
        assert _find(store, specification([0, 1], [0]), DC)[1] == slots[0]  # recently used, so never evicted


@pytest.mark.parametrize(
    ("counts", "symbols", "table_class", "status"),
    [
        ([3], [1, 2, 3], AC, Status.CORRUPT_HEADER),  # more codes than a length of 1 allows
        ([2, 1], [1, 2, 3], AC, Status.CORRUPT_HEADER),
        ([1], [0x0B], AC, Status.UNSUPPORTED),  # a magnitude beyond 8-bit images
        ([1], [12], DC, Status.UNSUPPORTED),
        ([0] * 8 + [200, 100], [1] * 256, AC, Status.CORRUPT_HEADER),  # more than 256 symbols
    ],
)
def test_find_tables_refuses_invalid_specifications(
    counts: list[int], symbols: list[int], table_class: int, status: Status
) -> None:
    assert _find(new_table_store(), specification(counts, symbols), table_class)[0] == status
