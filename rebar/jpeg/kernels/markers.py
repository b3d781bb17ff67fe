"""Parse the markers of a JPEG, find its restart segments, and remove or insert byte stuffing (ITU-T T.81, annex B).

Baseline and extended sequential Huffman JPEGs with 8 bits and one scan are supported, either grayscale or YCbCr with
4:4:4, 4:2:2, 4:4:0 or 4:2:0 subsampling. The status of others is UNSUPPORTED. No byte outside the file is read, even
if the file is corrupt.
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.format import CORRUPT_DATA, CORRUPT_HEADER, OK, TRUNCATED, UNSUPPORTED, ZIGZAG, Header
from rebar.jpeg.kernel_arguments import SCRATCH_PADDING, Tables
from rebar.jpeg.kernels.huffman import find_tables
from rebar.jpeg.kernels.jit import (
    compiled,
    copy_32_bytes,
    marker_bytes,
    trailing_zeros,
)

U = np.uint64
_SOI, _EOI, _SOF0, _SOF1, _SOF15, _DHT, _SOS, _DQT, _DRI = 0xD8, 0xD9, 0xC0, 0xC1, 0xCF, 0xC4, 0xDA, 0xDB, 0xDD
_DNL, _DHP, _EXP, _APP0, _APP14, _APP15, _COM, _RST0 = 0xDC, 0xDE, 0xDF, 0xE0, 0xEE, 0xEF, 0xFE, 0xD0


@compiled
def parse_header(data: NDArray[np.uint8], start: int, end: int, tables: Tables) -> tuple[int, Header]:
    """Parse the JPEG at ``data[start:end]`` into ``tables``; return the status and the header."""
    no_header = Header(0, 0, 0, 0, 0, 0, 0)
    tables.quantization_known[:] = False
    tables.specifications_known[:] = False
    if end - start < 4 or data[start] != 0xFF or data[start + 1] != _SOI:
        return CORRUPT_HEADER, no_header
    height, width, components, restart_interval = 0, 0, 0, 0
    position = start + 2
    while position + 4 <= end:
        if data[position] != 0xFF:
            return CORRUPT_HEADER, no_header
        marker = np.int64(data[position + 1])
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        length = _read_uint16(data, position + 2)
        begin, segment_end = position + 4, position + 2 + length
        if length < 2:
            return CORRUPT_HEADER, no_header
        if segment_end > end:
            return TRUNCATED, no_header
        status = OK
        if marker == _DQT:
            status = _read_quantization(data, begin, segment_end, tables)
        elif marker == _DHT:
            status = _read_huffman(data, begin, segment_end, tables)
        elif marker in (_SOF0, _SOF1):
            if components != 0:
                return CORRUPT_HEADER, no_header
            status, height, width, components = _read_frame(data, begin, segment_end, tables)
        elif marker == _DRI:
            if length != 4:
                return CORRUPT_HEADER, no_header
            restart_interval = _read_uint16(data, begin)
        elif marker == _SOS:
            if components == 0:
                return CORRUPT_HEADER, no_header
            status = _read_scan(data, begin, segment_end, components, tables)
            if status != OK:
                return status, no_header
            status, h_samp, v_samp = _sampling(components, tables)
            return status, Header(height, width, components, h_samp, v_samp, restart_interval, segment_end)
        elif marker == _APP14:
            status = _read_adobe(data, begin, segment_end)
        elif (_SOF0 < marker <= _SOF15) or marker in (_DNL, _DHP, _EXP):
            return UNSUPPORTED, no_header  # progressive, lossless, arithmetic, hierarchical, or DNL
        elif not (_APP0 <= marker <= _APP15 or marker == _COM):
            return CORRUPT_HEADER, no_header
        if status != OK:
            return status, no_header
        position = segment_end
    return TRUNCATED, no_header


@compiled
def _read_uint16(data: NDArray[np.uint8], position: int) -> int:
    return (np.int64(data[position]) << 8) | np.int64(data[position + 1])


@compiled
def _read_quantization(data: NDArray[np.uint8], position: int, end: int, tables: Tables) -> int:
    while position < end:
        precision, number = np.int64(data[position]) >> 4, np.int64(data[position]) & 15
        if number > 3 or precision > 1:
            return CORRUPT_HEADER
        if precision == 1:
            return UNSUPPORTED  # 16-bit steps: products overflow int16
        if position + 65 > end:
            return CORRUPT_HEADER
        for k in range(64):
            tables.quantization[number, ZIGZAG[k]] = data[position + 1 + k]
        tables.quantization_known[number] = True
        position += 65
    return OK


@compiled
def _read_huffman(data: NDArray[np.uint8], position: int, end: int, tables: Tables) -> int:
    while position < end:
        table_class, number = np.int64(data[position]) >> 4, np.int64(data[position]) & 15
        if table_class > 1 or number > 3 or position + 17 > end:
            return CORRUPT_HEADER
        symbols = 0
        for i in range(16):
            symbols += np.int64(data[position + 1 + i])
        if symbols > 256 or position + 17 + symbols > end:
            return CORRUPT_HEADER
        specification = tables.specifications[table_class, number]
        for i in range(16 + symbols):
            specification[i] = data[position + 1 + i]
        specification[16 + symbols :] = 0
        tables.specifications_known[table_class, number] = True
        position += 17 + symbols
    return OK


@compiled
def _read_frame(data: NDArray[np.uint8], position: int, end: int, tables: Tables) -> tuple[int, int, int, int]:
    """Return the status, the height and width in pixels, and the number of components."""
    if end - position < 6:
        return CORRUPT_HEADER, 0, 0, 0
    precision, components = np.int64(data[position]), np.int64(data[position + 5])
    height, width = _read_uint16(data, position + 1), _read_uint16(data, position + 3)
    if end - position != 6 + 3 * components or width == 0 or components == 0:
        return CORRUPT_HEADER, 0, 0, 0
    if precision != 8 or height == 0 or components not in (1, 3):
        return UNSUPPORTED, 0, 0, 0
    for i in range(components):
        sampling = np.int64(data[position + 7 + 3 * i])
        tables.components[i, 0] = data[position + 6 + 3 * i]
        tables.components[i, 1] = sampling >> 4
        tables.components[i, 2] = sampling & 15
        tables.components[i, 3] = data[position + 8 + 3 * i]
        if not (1 <= sampling >> 4 <= 4 and 1 <= sampling & 15 <= 4 and data[position + 8 + 3 * i] <= 3):
            return CORRUPT_HEADER, 0, 0, 0
    ids = tables.components[:, 0]
    if components == 3 and ids[0] == ord("R") and ids[1] == ord("G") and ids[2] == ord("B"):
        return UNSUPPORTED, 0, 0, 0  # not YCbCr
    return OK, height, width, components


@compiled
def _read_adobe(data: NDArray[np.uint8], position: int, end: int) -> int:
    """Return UNSUPPORTED if the last byte of Adobe's APP14 marks three components as RGB instead of YCbCr."""
    is_adobe = end - position >= 12
    if is_adobe:
        for i, letter in enumerate((65, 100, 111, 98, 101)):
            is_adobe = is_adobe and data[position + i] == letter
    return UNSUPPORTED if is_adobe and data[position + 11] != 1 else OK


@compiled
def _read_scan(data: NDArray[np.uint8], position: int, end: int, components: int, tables: Tables) -> int:
    if end - position < 1 or end - position != 4 + 2 * np.int64(data[position]):
        return CORRUPT_HEADER
    if data[position] != components:
        return UNSUPPORTED  # several scans
    for i in range(components):
        if data[position + 1 + 2 * i] != tables.components[i, 0]:
            return UNSUPPORTED
        quantization = tables.components[i, 3]
        if not tables.quantization_known[quantization]:
            return CORRUPT_HEADER
        for table_class in range(2):
            number = (np.int64(data[position + 2 + 2 * i]) >> (4 - 4 * table_class)) & 15
            if number > 3 or not tables.specifications_known[table_class, number]:
                return CORRUPT_HEADER
            status, slot = find_tables(tables.store, tables.specifications[table_class, number], table_class)
            if status != OK:
                return status
            tables.components[i, 4 + table_class] = slot
    spectral = position + 1 + 2 * components
    full_spectrum = data[spectral] == 0 and data[spectral + 1] == 63 and data[spectral + 2] == 0
    return OK if full_spectrum else CORRUPT_HEADER


@compiled
def _sampling(components: int, tables: Tables) -> tuple[int, int, int]:
    """Return the status and the luma sampling factors."""
    if components == 1:
        return OK, 1, 1  # one component: an MCU is one block, regardless of the factors (T.81, A.2.2)
    h_samp, v_samp = tables.components[0, 1], tables.components[0, 2]
    for i in range(1, components):
        if tables.components[i, 1] != 1 or tables.components[i, 2] != 1:
            return UNSUPPORTED, 0, 0
    return (OK, h_samp, v_samp) if h_samp <= 2 and v_samp <= 2 else (UNSUPPORTED, 0, 0)


@compiled
def find_segments(
    data: NDArray[np.uint8], start: int, end: int, count: int, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> int:
    """Find the first ``count`` restart segments; return the status.

    Their starts and ends are stored in ``starts`` and ``ends``, int64. The restart markers between them must count up
    modulo 8. The search stops with CORRUPT_DATA at any other marker and with TRUNCATED at the end of the data.
    """
    base = U(data.ctypes.data)
    found, position = 0, start
    starts[0] = start
    while True:
        while position + 33 <= end:  # 32 bytes, and one more for a marker's second byte
            bits = marker_bytes(base + U(position))
            while bits != U(0):
                candidate = position + np.int64(trailing_zeros(bits))
                bits &= bits - U(1)
                if data[candidate + 1] != 0:
                    position = candidate
                    break
            else:
                position += 32
                continue
            break
        else:
            while position + 1 < end and not (data[position] == 0xFF and data[position + 1] != 0):
                position += 1
            if position + 1 >= end:
                return TRUNCATED
        ends[found] = position
        while position + 1 < end and data[position + 1] == 0xFF:  # fill bytes
            position += 1
        if position + 1 >= end:
            return TRUNCATED
        found += 1
        if found == count:
            return OK
        if data[position + 1] != _RST0 + (found - 1) % 8:
            return CORRUPT_DATA
        position += 2
        starts[found] = position


@compiled
def is_end(data: NDArray[np.uint8], position: int) -> bool:
    """Return whether the marker at ``data[position]``, which fill bytes may precede, is EOI."""
    while position + 1 < data.size and data[position + 1] == 0xFF:
        position += 1
    return position + 1 < data.size and data[position + 1] == _EOI


@compiled
def has_end(data: NDArray[np.uint8], start: int, end: int) -> bool:
    """Return whether entropy-coded data in ``data[start:end]`` ends with an EOI marker.

    The marker is usually at the end, or followed by padding (0x00 or 0xFF). Otherwise all data is searched, because
    other data may follow.
    """
    last = end - 1
    while last > start and (data[last] == 0 or data[last] == 0xFF):
        last -= 1
    if last > start and data[last] == _EOI and data[last - 1] == 0xFF:
        return True
    position = start
    while position < end - 1 and not (data[position] == 0xFF and data[position + 1] == _EOI):
        position += 1
    return position < end - 1


@compiled
def remove_stuffing(data: NDArray[np.uint8], start: int, end: int, scratch: NDArray[np.uint8]) -> int:
    """Copy ``data[start:end]`` without the zero byte after each 0xFF; return the number of bytes copied.

    Zeros follow the copy. ``scratch`` is at least ``end - start + SCRATCH_PADDING`` long.
    """
    source, out = U(data.ctypes.data), U(scratch.ctypes.data)
    position, length = start, 0
    while position + 32 <= end:
        copy_32_bytes(source + U(position), out + U(length))
        bits = marker_bytes(source + U(position))
        if bits == U(0):
            position += 32
            length += 32
        else:
            first = np.int64(trailing_zeros(bits))
            position += first + 2
            length += first + 1
    while position < end:
        byte = data[position]
        scratch[length] = byte
        length += 1
        position += 2 if byte == 0xFF else 1
    scratch[length : length + SCRATCH_PADDING] = 0
    return length
