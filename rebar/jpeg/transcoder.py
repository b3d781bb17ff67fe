"""The same coefficients in other bits: restart markers and the standard Huffman tables put into a JPEG, losslessly.

Where it is asked for, coefficients are rounded to coarser quantisation steps on the way: what decoding and encoding
anew come to, without what is lost between them.

Symbols are not decoded to coefficients: each is read, its code exchanged, and its magnitude's bits copied. Only the DC
differences change, where a prediction now begins anew (ITU-T T.81, F.1.2 and F.2.2). Everything that is read is
checked on the way, so what comes out can be decoded whole.

Input is what :mod:`rebar.jpeg.kernels.headers` accepts. Comments and application data are dropped,
including thumbnails, color profiles and Exif.
"""

import functools
import struct
import subprocess

import numpy as np
from numpy.typing import NDArray

from rebar.errors import RebarError
from rebar.jpeg.kernel_cache import Kernel, describe, kinds, load_kernel
from rebar.jpeg.standard_tables import AC_CODES, DC_CODES, ZIGZAG, quantization_tables
from rebar.jpeg.status import Header, Status
from rebar.jpeg.transcode_workspace import RATIO_BITS, Transcoding, new_transcode_scratch, new_transcoding

_KINDS = kinds(new_transcoding(1, 1))
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_HUFFMAN = b"".join(
    b"\xff\xc4" + struct.pack(">HB", 3 + len(codes), table_class << 4 | number) + codes
    for number in range(2)
    for table_class, codes in enumerate((DC_CODES[number], AC_CODES[number]))
)


class Transcoder:
    """Rewrites JPEGs; holds the scratch of one thread. The interpreter lock is not held while it works.

    Raises RebarError where its kernels cannot be compiled.
    """

    def __init__(self) -> None:
        try:
            self._read_header, self._transcode = load_kernel("read_header"), load_kernel("transcode")
        except subprocess.CalledProcessError:
            raise RebarError(
                "the JPEG kernels cannot be compiled here, 'python -m rebar.jpeg' shows why; 'python -m rebar.doctor' "
                "looks for what is missing; --write-mode raw needs none"
            ) from None
        self._hold(new_transcoding(0, 1024))

    def read_header(self, jpeg: NDArray[np.uint8]) -> tuple[Status, Header]:
        """What stands before the JPEG's entropy-coded data; :meth:`write` takes the JPEG that was read last."""
        self._call(self._read_header, jpeg)
        return Status(int(self._arrays.result[0])), Header(*self._arrays.header.tolist())

    def quantization(self, component: int) -> NDArray[np.int16]:
        """The steps ``[64]`` of a component of the JPEG that was read last, in natural order."""
        tables = self._arrays.tables
        return tables.quantization[tables.components[component, 3]]

    def write(
        self, jpeg: NDArray[np.uint8], header: Header, interval: int, quality: int | None = None
    ) -> tuple[Status, NDArray[np.uint8]]:
        """The JPEG with a restart marker every ``interval`` units (0: none), uint8 ``[n]``, and whether it went well.

        With ``quality``, no quantisation step is finer than libjpeg's at this quality. ``header`` is what
        :meth:`read_header` made of ``jpeg``. Where the status is not OK there are no bytes.
        """
        units = -(-header.width // (8 * header.h_samp)) * -(-header.height // (8 * header.v_samp))
        segments = -(-units // header.restart_interval) if header.restart_interval else 1
        if 2 * segments > jpeg.size or units > 4 * jpeg.size:  # a marker has two bytes, a block two bits
            return Status.TRUNCATED, np.zeros(0, np.uint8)
        steps = tuple(self.quantization(component).tobytes() for component in range(header.components))
        tables, ratios = _coarsened(steps, quality)
        front = _front(header, interval, tables)
        # Standard codes may be longer than the file's: an image that takes twice its bytes is not written.
        room = 2 * jpeg.size + 8 * (units // interval + 1 if interval else 1) + 4096
        if self._arrays.out.size < room or self._arrays.scratch.segments.shape[1] < segments:
            room, segments = room * 3 // 2, max(1024, segments * 3 // 2)
            scratch = new_transcode_scratch(room, segments)
            self._hold(self._arrays._replace(out=np.zeros(room, np.uint8), scratch=scratch))
        arrays = self._arrays
        arrays.out[: len(front)] = np.frombuffer(front, np.uint8)
        arrays.scratch.ratios[: len(ratios)] = ratios
        arrays.settings[:] = interval, quality is not None, len(front)
        self._call(self._transcode, jpeg)
        status, end = arrays.result.tolist()
        return Status(status), arrays.out[:end].copy()

    def _hold(self, arrays: Transcoding) -> None:
        assert kinds(arrays) == _KINDS  # compiled code would take the bytes for what they are not
        self._arrays, self._described = arrays, describe(arrays)

    def _call(self, kernel: Kernel, jpeg: NDArray[np.uint8]) -> None:
        if jpeg.dtype != np.uint8 or jpeg.ndim != 1 or not jpeg.flags.c_contiguous:
            raise ValueError("a JPEG must be contiguous uint8 [bytes]")
        self._described[0, :2] = jpeg.__array_interface__["data"][0], jpeg.size  # Transcoding.data
        kernel(self._described.ctypes.data)


@functools.lru_cache(maxsize=64)
def _coarsened(steps: tuple[bytes, ...], quality: int | None) -> tuple[list[bytes], NDArray[np.int64]]:
    """The quantisation tables to write, one a component, and the ratios of the steps read to them.

    ``steps`` are those read, int16 in natural order; tables are in zigzag order.
    """
    before = np.stack([np.frombuffer(component, np.int16)[ZIGZAG[:64]] for component in steps]).astype(np.int64)
    after = before
    if quality is not None:
        after = np.maximum(before, quantization_tables(quality)[np.minimum(np.arange(len(steps)), 1)])
    ratios = (2 * before * (1 << RATIO_BITS) + after) // np.maximum(2 * after, 1)
    return [component.astype(np.uint8).tobytes() for component in after], ratios


def _front(header: Header, interval: int, tables: list[bytes]) -> bytes:
    """Everything up to the entropy-coded data; ``tables`` are each component's, in zigzag order."""
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
    parts.append(_HUFFMAN if header.components > 1 else _HUFFMAN[: len(_HUFFMAN) // 2])
    if interval:
        parts.append(b"\xff\xdd" + struct.pack(">HH", 4, interval))
    parts.append(b"\xff\xda" + struct.pack(">H", 5 + len(scan)) + scan + b"\x00\x3f\x00")
    return b"".join(parts)
