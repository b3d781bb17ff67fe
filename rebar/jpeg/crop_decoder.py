"""Decode, crop, resize and flip JPEGs several times as fast as full-image decoding.

The kernels decode only the part of a JPEG that a crop needs (:mod:`rebar.jpeg.kernels.crops`) and resize its planes
directly to the output (:mod:`rebar.jpeg.kernels.resize`). The result agrees with full-image decoding and
``cv2.resize(..., INTER_AREA)`` to about a quarter of a gray level on average.
"""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.format import Status
from rebar.jpeg.kernel_arguments import (
    BITS_MARGIN,
    DESCRIPTOR_FIELDS,
    Call,
    Workspace,
    array_types,
    descriptors,
    new_axis_weights,
    new_region_scratch,
    new_resize_scratch,
    new_table_store,
    new_tables,
    prototype_arguments,
)
from rebar.jpeg.kernel_cache import load_kernel

__all__ = ["CropDecoder", "Status"]

_CALL_TYPES, _WORKSPACE_TYPES = (array_types(part) for part in prototype_arguments())


class CropDecoder:
    """Decode crops of JPEGs up to ``max_height`` by ``max_width`` pixels.

    A decoder owns scratch memory, so each thread needs its own; creating one is cheap. The GIL is released while it
    decodes.
    """

    def __init__(self, max_height: int, max_width: int) -> None:
        self.max_height = max_height
        self.max_width = max_width
        self._kernel = load_kernel()
        self._tables = new_tables(new_table_store())
        self._region = new_region_scratch(max_height, max_width)
        self._bits = np.zeros((2, 0), np.uint8)
        self._out_size = (0, 0)
        self._descriptors = np.zeros((0, DESCRIPTOR_FIELDS), np.int64)

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

        JPEG i is ``data[offsets[i] : offsets[i] + sizes[i]]``. Its crop ``boxes[i]`` (top, left, height, width in
        pixels) is resized like cv2 INTER_AREA, and flipped horizontally if ``flips[i]``. The status is WRONG_SIZE
        for a JPEG whose height and width differ from ``shapes[i]``.

        Returns one :class:`Status` per image, uint8 ``[n]``. The pixels are undefined unless it is OK. Raises
        ValueError for arrays of another shape, dtype or layout.
        """
        count, out_height, out_width, channels = out.shape
        if channels != 3 or out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError("out must be writeable C-contiguous uint8 [n, height, width, 3]")
        if not (len(offsets) == len(sizes) == len(boxes) == len(flips) == count) or boxes.shape[1:] != (4,):
            raise ValueError(f"offsets, sizes, boxes [n, 4], flips and out must have the same length, {count}")
        if shapes is not None and shapes.shape != (count, 2):
            raise ValueError(f"shapes must be [{count}, 2]")
        statuses = np.zeros(count, np.uint8)
        if count == 0 or out_height == 0 or out_width == 0:
            return statuses
        if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
            raise ValueError("data must be contiguous uint8 [bytes]")
        ends = offsets + sizes
        if bool((ends < offsets).any()) or int(ends.max()) > data.size:
            raise ValueError(f"an image is outside the {data.size} bytes of data")
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
        assert array_types(call) == _CALL_TYPES  # the kernel would misinterpret arrays of other types
        workspace = self._workspace(int(sizes.max()), out_height, out_width)
        table = np.concatenate([descriptors(call), workspace])
        self._kernel(table.ctypes.data)
        return statuses

    def _workspace(self, max_bytes: int, out_height: int, out_width: int) -> NDArray[np.int64]:
        """Return the descriptors of the scratch memory. Reallocates buffers that are too small for this call."""
        if self._bits.shape[1] >= max_bytes + BITS_MARGIN and self._out_size == (out_height, out_width):
            return self._descriptors
        if self._bits.shape[1] < max_bytes + BITS_MARGIN:
            self._bits = np.zeros((2, max_bytes + max_bytes // 2 + BITS_MARGIN), np.uint8)
        if self._out_size != (out_height, out_width):
            self._out_size = (out_height, out_width)
            self._weights = new_axis_weights(out_height, out_width, self.max_height, self.max_width)
            self._resize = new_resize_scratch(out_width, self.max_height)
        scratch = Workspace(self._tables, self._region, self._bits, self._weights, self._resize)
        assert array_types(scratch) == _WORKSPACE_TYPES
        self._descriptors = descriptors(scratch)
        return self._descriptors
