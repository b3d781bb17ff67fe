"""Crops of JPEG images, resized and mirrored, several times as fast as decoding them whole.

Only the part of a JPEG that a crop needs is decoded (:mod:`rebar.jpeg.kernels.region`), and its planes are resized
straight to the output (:mod:`rebar.jpeg.kernels.resize`). It agrees with decoding everything and
``cv2.resize(..., INTER_AREA)`` to about a quarter of a grey level on average.
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernel_cache import FIELDS, Call, Workspace, describe, kinds, load_kernel, prototype
from rebar.jpeg.status import Status
from rebar.jpeg.workspace import (
    BITS_ROOM,
    new_axis_weights,
    new_region_scratch,
    new_resample_scratch,
    new_table_store,
    new_tables,
)

__all__ = ["CropDecoder", "Status"]

_CALL_KINDS, _WORKSPACE_KINDS = (kinds(part) for part in prototype())


class CropDecoder:
    """Decodes crops of images up to ``max_height`` by ``max_width`` pixels.

    Cheap to make; it holds the scratch of one thread, so each thread has its own. The interpreter lock is
    not held while it decodes.
    """

    def __init__(self, max_height: int, max_width: int) -> None:
        self.max_height = max_height
        self.max_width = max_width
        self._kernel = load_kernel()
        self._tables = new_tables(new_table_store())
        self._region = new_region_scratch(max_height, max_width)
        self._bits = np.zeros((2, 0), np.uint8)
        self._out_size = (0, 0)
        self._described = np.zeros((0, FIELDS), np.int64)

    def decode_crops(
        self,
        data: NDArray[np.uint8],
        offsets: NDArray[np.uint64],
        sizes: NDArray[np.uint64],
        boxes: NDArray[np.int64],
        flips: NDArray[np.bool_],
        out: NDArray[np.uint8],
        shapes: NDArray[np.int64] | None = None,
    ) -> NDArray[np.uint8]:
        """Decode n crops into ``out``, uint8 RGB ``[n, height, width, 3]``, C-contiguous.

        JPEG i is ``data[offsets[i] : offsets[i] + sizes[i]]``; its crop ``boxes[i]`` (top, left, height, width
        in pixels) is resized as cv2 INTER_AREA does and mirrored if ``flips[i]``. Where ``shapes[i]`` (height,
        width) is told, a JPEG of another size is WRONG_SIZE. Returns one
        :class:`Status` an image, uint8 ``[n]``; the pixels of those that are not OK are undefined.
        """
        count, out_height, out_width, channels = out.shape
        if channels != 3 or out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError("out must be writeable C-contiguous uint8 [n, height, width, 3]")
        if not (len(offsets) == len(sizes) == len(boxes) == len(flips) == count) or boxes.shape[1:] != (4,):
            raise ValueError(f"offsets, sizes, boxes [n, 4], flips and out must be of one length, {count}")
        if shapes is not None and shapes.shape != (count, 2):
            raise ValueError(f"shapes must be [{count}, 2]")
        statuses = np.zeros(count, np.uint8)
        if count == 0 or out_height == 0 or out_width == 0:
            return statuses
        if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
            raise ValueError("data must be contiguous uint8 [bytes]")
        ends = offsets + sizes
        if bool((ends < offsets).any()) or int(ends.max()) > data.size:
            raise ValueError(f"an image lies outside the {data.size} bytes of data")
        call = Call(
            np.asarray(data),
            offsets.astype(np.int64),
            ends.astype(np.int64),
            np.zeros((count, 2), np.int64) if shapes is None else np.array(shapes, np.int64, order="C"),
            np.array(boxes, np.int64, order="C"),
            np.array(flips, np.bool_, order="C"),
            np.asarray(out),
            statuses,
        )
        assert kinds(call) == _CALL_KINDS  # compiled code would take the bytes for what they are not
        workspace = self._workspace(int(sizes.max()), out_height, out_width)
        table = np.concatenate([describe(call), workspace])
        self._kernel(table.ctypes.data)
        return statuses

    def _workspace(self, longest: int, out_height: int, out_width: int) -> NDArray[np.int64]:
        """The descriptors of this decoder's scratch; what depends on what is asked for is made unless it is there."""
        if self._bits.shape[1] >= longest + BITS_ROOM and self._out_size == (out_height, out_width):
            return self._described
        if self._bits.shape[1] < longest + BITS_ROOM:
            self._bits = np.zeros((2, longest + longest // 2 + BITS_ROOM), np.uint8)
        if self._out_size != (out_height, out_width):
            self._out_size = (out_height, out_width)
            self._taps = new_axis_weights(out_height, out_width, self.max_height, self.max_width)
            self._resample = new_resample_scratch(out_width, self.max_height)
        scratch = Workspace(self._tables, self._region, self._bits, self._taps, self._resample)
        assert kinds(scratch) == _WORKSPACE_KINDS
        self._described = describe(scratch)
        return self._described
