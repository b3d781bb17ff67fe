"""Batches of decoded pictures from a .beton, prepared ahead by threads.

The consumer asks for a batch; that schedules another one. No thread waits for anything but work, so
there is nobody to wait for in vain: what goes wrong in a thread is raised at the batch it belongs to.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rebar.beton.format import MODE_JPG
from rebar.beton.reader import BetonFile
from rebar.errors import RebarError
from rebar.jpeg.turbojpeg import load_turbojpeg
from rebar.loading.crops import Cropper, Crops
from rebar.loading.decode import decode_into
from rebar.loading.order import epoch_order, rank_batches


class Batch(NamedTuple):
    """``images`` uint8 ``[n, resolution, resolution, 3]`` RGB and ``labels`` int64 ``[n]``, in main memory."""

    images: torch.Tensor
    labels: torch.Tensor


class _Pending(NamedTuple):
    batch: Batch
    parts: list[Future[None]]


class Loader:
    """Streams a .beton as batches that depend on (seed, epoch, sample) only.

    Neither the number of threads nor of processes nor a restart changes a batch. ``batch_size`` is per
    process; ``rank`` and ``world_size`` say which share of each global batch is ours. ``read_ahead`` asks
    the kernel for the coming pictures early: for files larger than memory.
    """

    def __init__(
        self,
        path: Path | str,
        batch_size: int,
        cropper: Cropper,
        *,
        num_workers: int,
        shuffle: bool,
        drop_last: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batches_ahead: int = 3,
        read_ahead: bool = False,
        pin_memory: bool = False,
    ) -> None:
        self.beton = BetonFile.open(path)
        self.batch_size = batch_size
        self.cropper = cropper
        self.num_workers = max(1, num_workers)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batches_ahead = batches_ahead
        self.read_ahead = read_ahead
        self.pin_memory = pin_memory
        if (self.beton.modes == MODE_JPG).any():
            load_turbojpeg()  # where it is missing, say so now and not at the first batch
        if len(self) == 0:
            raise RebarError(
                f"{self.beton.path} holds {self.beton.num_samples} samples, less than one global batch of "
                f"{world_size} x {batch_size}: choose a smaller batch size"
            )

    @property
    def num_samples(self) -> int:
        return self.beton.num_samples

    def __len__(self) -> int:
        """Global batches an epoch; each rank goes through that many."""
        global_batch = self.batch_size * self.world_size
        return self.num_samples // global_batch if self.drop_last else -(-self.num_samples // global_batch)

    def indices(self, epoch: int) -> list[NDArray[np.int64]]:
        """The sample indices of each of this rank's batches in an epoch."""
        order = epoch_order(self.num_samples, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        return rank_batches(
            order,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
        )

    def epoch(self, epoch: int, resolution: int) -> Iterator[Batch]:
        """Go through one epoch at one resolution (pixels). May be left early.

        Raises CorruptSampleError at the batch that holds the sample.
        """
        waiting = deque(self.indices(epoch))
        pending: deque[_Pending] = deque()
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="rebar-loader") as threads:
            try:
                while waiting or pending:
                    while waiting and len(pending) <= self.batches_ahead:
                        pending.append(self._submit(threads, waiting.popleft(), epoch, resolution))
                    batch, parts = pending.popleft()
                    for part in parts:
                        part.result()
                    yield batch
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def _submit(self, threads: ThreadPoolExecutor, indices: NDArray[np.int64], epoch: int, resolution: int) -> _Pending:
        if self.read_ahead:
            self._request(indices)
        images = torch.empty((len(indices), resolution, resolution, 3), dtype=torch.uint8, pin_memory=self.pin_memory)
        labels = torch.from_numpy(self.beton.labels[indices])
        crops = self.cropper.crops(
            self.beton.heights[indices].astype(np.int64),
            self.beton.widths[indices].astype(np.int64),
            indices=indices,
            seed=self.seed,
            epoch=epoch,
        )
        shares = np.array_split(np.arange(len(indices)), min(self.num_workers, max(1, len(indices))))
        parts = [threads.submit(self._decode, images.numpy(), indices, crops, share) for share in shares]
        return _Pending(Batch(images, labels.pin_memory() if self.pin_memory else labels), parts)

    def _request(self, indices: NDArray[np.int64]) -> None:
        with open(self.beton.path, "rb") as file:
            for offset, size in zip(self.beton.offsets[indices], self.beton.sizes[indices], strict=True):
                os.posix_fadvise(file.fileno(), int(offset), int(size), os.POSIX_FADV_WILLNEED)

    def _decode(
        self, images: NDArray[np.uint8], indices: NDArray[np.int64], crops: Crops, share: NDArray[np.int64]
    ) -> None:
        for slot in share:
            decode_into(self.beton, int(indices[slot]), crops.boxes[slot], bool(crops.flips[slot]), images[slot])
