"""The upper bound for a loader with Rebar's kernels: decode the crops to YCbCr planes in a plain loop.

There is no resizing, no color conversion, and no loader.
"""

from collections.abc import Iterable, Iterator

from peers import Job


def epochs(job: Job) -> Iterator[Iterable[int]]:
    """Yield an iterable of batch sizes per epoch: the samples, boxes and batches of the peer ``rebar``, on one core."""
    import numpy as np
    from numba import njit

    from rebar.beton import BetonFile
    from rebar.jpeg.kernel_arguments import BITS_MARGIN, new_region_scratch, new_table_store, new_tables
    from rebar.jpeg.kernels.crops import decode_region
    from rebar.jpeg.kernels.markers import parse_header
    from rebar.loading.crops import RandomResizedCrop
    from rebar.loading.order import OrderOption, epoch_order, shard_batches
    from rebar.loading.rng import RngKeys

    if job.cores != 1:
        raise SystemExit("this peer runs on one core only")

    @njit(nogil=True)
    def decode_all(data, starts, ends, boxes, tables, scratch, bits):  # type: ignore[no-untyped-def]
        wrong = 0
        for i in range(starts.size):
            status, header = parse_header(data, starts[i], ends[i], tables)
            top, left, height, width = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
            for c in range(header.components):
                h_samp, v_samp = (1, 1) if c == 0 else (header.h_samp, header.v_samp)
                scratch.needed[c, 0], scratch.needed[c, 1] = left // h_samp, -(-(left + width) // h_samp)
                scratch.needed[c, 2], scratch.needed[c, 3] = top // v_samp, -(-(top + height) // v_samp)
            if status == 0:
                status = decode_region(data, ends[i], header, tables, scratch, bits)
            wrong += status != 0
        return wrong

    beton = BetonFile.open(job.beton)
    heights, widths = beton.heights.astype(np.int64), beton.widths.astype(np.int64)
    starts = beton.offsets.astype(np.int64)
    ends = starts + beton.sizes.astype(np.int64)
    tables = new_tables(new_table_store())
    scratch = new_region_scratch(int(heights.max()), int(widths.max()))
    bits = np.zeros((2, int((ends - starts).max()) + BITS_MARGIN), np.uint8)

    def decode(keys: RngKeys) -> int:
        chosen = keys.indices
        boxes = RandomResizedCrop().crops(heights[chosen], widths[chosen], keys).boxes
        wrong = decode_all(beton.data, starts[chosen], ends[chosen], boxes, tables, scratch, bits)
        if wrong:
            raise SystemExit(f"{wrong} images could not be decoded")
        return len(chosen)

    everything = np.arange(beton.num_samples, dtype=np.int64)
    for epoch in range(job.epochs):
        order = epoch_order(OrderOption.RANDOM, RngKeys(0, epoch, everything), everything, window_pages=1)
        batches = shard_batches(order, batch_size=job.batch_size, rank=0, world_size=1, drop_last=True)
        yield (decode(RngKeys(0, epoch, indices)) for indices in batches)
