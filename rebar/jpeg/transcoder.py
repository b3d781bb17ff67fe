"""Transcode JPEGs losslessly: insert restart markers and use the standard Huffman tables.

Optionally, coefficients are requantized to coarser steps, which loses no more than decoding and re-encoding. Symbols
are not decoded to coefficients: each Huffman code is replaced and the bits of its magnitude are copied. Only DC
differences change, where a restart marker resets the prediction (ITU-T T.81, F.1.2 and F.2.2). All input is validated,
so the output can be decoded completely. Supported inputs are those of :mod:`rebar.jpeg.kernels.headers`. Comments and
application data, such as thumbnails, color profiles and Exif, are dropped.
"""

import functools
import struct

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.descriptors import array_types, descriptors
from rebar.jpeg.kernel_cache import Kernel, load_kernel
from rebar.jpeg.standard_tables import AC_CODES, DC_CODES, ZIGZAG, quantization_tables
from rebar.jpeg.status import Header, Status
from rebar.jpeg.transcode_workspace import RATIO_BITS, TranscodeCall, new_transcode_call, new_transcode_scratch

_ARGUMENT_TYPES = array_types(new_transcode_call(1, 1))
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_DHT_SEGMENTS = b"".join(
    b"\xff\xc4" + struct.pack(">HB", 3 + len(codes), table_class << 4 | number) + codes
    for number in range(2)
    for table_class, codes in enumerate((DC_CODES[number], AC_CODES[number]))
)


class Transcoder:
    """Transcodes JPEGs. Owns scratch memory, so each thread needs its own. Kernels run without the GIL.

    Raises RebarError if the kernels cannot be compiled.
    """

    def __init__(self) -> None:
        self._read_header, self._transcode = load_kernel("read_header"), load_kernel("transcode")
        self._set_arrays(new_transcode_call(0, 1024))

    def read_header(self, jpeg: NDArray[np.uint8]) -> tuple[Status, Header]:
        """Parse a JPEG's header. Call this before :meth:`write`, which uses the tables that were read last."""
        self._call(self._read_header, jpeg)
        return Status(int(self._arrays.result[0])), Header(*self._arrays.header.tolist())

    def quantization(self, component: int) -> NDArray[np.int16]:
        """Return a component's quantization table in the JPEG that was read last: ``[64]``, in natural order."""
        tables = self._arrays.tables
        return tables.quantization[tables.components[component, 3]]

    def write(
        self, jpeg: NDArray[np.uint8], header: Header, interval: int, quality: int | None = None
    ) -> tuple[Status, NDArray[np.uint8]]:
        """Transcode a JPEG, with a restart marker every ``interval`` MCUs (0: none).

        Returns the status and the JPEG, uint8 ``[n]``, which is empty unless the status is OK. ``header`` is the result
        of :meth:`read_header` for the same JPEG. With ``quality``, coefficients are requantized so that no quantization
        step is finer than libjpeg's at this quality.
        """
        mcus = -(-header.width // (8 * header.h_samp)) * -(-header.height // (8 * header.v_samp))
        segments = -(-mcus // header.restart_interval) if header.restart_interval else 1
        if 2 * segments > jpeg.size or mcus > 4 * jpeg.size:  # a marker takes at least two bytes, a block two bits
            return Status.TRUNCATED, np.zeros(0, np.uint8)
        steps = tuple(self.quantization(component).tobytes() for component in range(header.components))
        tables, ratios = _requantized_tables(steps, quality)
        headers = _headers(header, interval, tables)
        # The standard codes may be longer than the file's. An image that would double in size is refused.
        capacity = 2 * jpeg.size + 8 * (mcus // interval + 1 if interval else 1) + 4096
        if self._arrays.out.size < capacity or self._arrays.scratch.segments.shape[1] < segments:
            capacity, segments = capacity * 3 // 2, max(1024, segments * 3 // 2)
            scratch = new_transcode_scratch(capacity, segments)
            self._set_arrays(self._arrays._replace(out=np.zeros(capacity, np.uint8), scratch=scratch))
        arrays = self._arrays
        arrays.out[: len(headers)] = np.frombuffer(headers, np.uint8)
        arrays.scratch.ratios[: len(ratios)] = ratios
        arrays.settings[:] = interval, quality is not None, len(headers)
        self._call(self._transcode, jpeg)
        status, end = arrays.result.tolist()
        return Status(status), arrays.out[:end].copy()

    def _set_arrays(self, arrays: TranscodeCall) -> None:
        assert array_types(arrays) == _ARGUMENT_TYPES  # the kernel would misinterpret arrays of other types
        self._arrays, self._descriptors = arrays, descriptors(arrays)

    def _call(self, kernel: Kernel, jpeg: NDArray[np.uint8]) -> None:
        if jpeg.dtype != np.uint8 or jpeg.ndim != 1 or not jpeg.flags.c_contiguous:
            raise ValueError("a JPEG must be contiguous uint8 [bytes]")
        self._descriptors[0, :2] = jpeg.__array_interface__["data"][0], jpeg.size  # TranscodeCall.data
        kernel(self._descriptors.ctypes.data)


@functools.lru_cache(maxsize=64)
def _requantized_tables(steps: tuple[bytes, ...], quality: int | None) -> tuple[list[bytes], NDArray[np.int64]]:
    """Return the quantization tables to write, one per component, and the ratios of the old steps to the new ones.

    ``steps`` are the old tables, int16 in natural order; the new tables are in zigzag order.
    """
    before = np.stack([np.frombuffer(component, np.int16)[ZIGZAG[:64]] for component in steps]).astype(np.int64)
    after = before
    if quality is not None:
        after = np.maximum(before, quantization_tables(quality)[np.minimum(np.arange(len(steps)), 1)])
    ratios = (2 * before * (1 << RATIO_BITS) + after) // np.maximum(2 * after, 1)
    return [component.astype(np.uint8).tobytes() for component in after], ratios


def _headers(header: Header, interval: int, tables: list[bytes]) -> bytes:
    """Return all markers before the entropy-coded data; ``tables`` are each component's, in zigzag order."""
    distinct = sorted(set(tables), key=tables.index)
    parts = [b"\xff\xd8", _JFIF]
    parts += [b"\xff\xdb" + struct.pack(">HB", 67, number) + table for number, table in enumerate(distinct)]
    frame = struct.pack(">BHHB", 8, header.height, header.width, header.components)
    scan = struct.pack("B", header.components)
    for i, table in enumerate(tables):
        sampling = header.h_samp << 4 | header.v_samp if i == 0 else 0x11
        frame += struct.pack("BBB", i + 1, sampling, distinct.index(table))
        scan += struct.pack("BB", i + 1, 0x11 if i else 0)
    parts.append(b"\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame)
    parts.append(_DHT_SEGMENTS if header.components > 1 else _DHT_SEGMENTS[: len(_DHT_SEGMENTS) // 2])
    if interval:
        parts.append(b"\xff\xdd" + struct.pack(">HH", 4, interval))
    parts.append(b"\xff\xda" + struct.pack(">H", 5 + len(scan)) + scan + b"\x00\x3f\x00")
    return b"".join(parts)
