"""Batches of images and labels, each decoded by several threads at once."""

import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rebar.beton.reader import BetonFile
from rebar.loading.batch_source import Batch, Plan, Regions, StartBatch
from rebar.loading.crops import Cropper, Crops
from rebar.loading.decode import Corruption, CorruptSampleError, DecoderPool, ImageDecoder, OnError
from rebar.loading.device import on_device
from rebar.loading.prefetch import BufferPool, Later, Wait, shares
from rebar.loading.rng import RngKeys


class ImageSource:
    """Decodes batches of a file as ``plan`` says. Scratch and memory for batches outlive an epoch."""

    def __init__(
        self,
        beton: BetonFile,
        plan: Plan,
        *,
        indices: NDArray[np.int64],
        on_error: OnError,
        num_workers: int,
        keep_slots: int,
        pin_memory: bool,
    ) -> None:
        self.beton = beton
        self.indices = indices
        self.files = beton.files
        self.page_size = beton.page_size
        self.whole_batches = False
        self.plan = plan
        self.num_workers = num_workers
        self.pin_memory = pin_memory or (plan.device is not None and plan.device.type == "cuda")
        self._corruption = Corruption(on_error, indices)
        self.corrupt_samples = self._corruption.samples
        self._slots = BufferPool(keep_slots)
        self._decoders = DecoderPool()
        self._largest = int(beton.heights.max()), int(beton.widths.max())

    def begin_epoch(self, resolution: int | None) -> StartBatch:
        """How to start a batch of the coming epoch."""
        return functools.partial(self._start, cropper=self.plan.cropper(), size=self.plan.size(resolution))

    def finish(self, batches: Iterator[Batch]) -> Iterator[tuple[Any, ...]]:
        """What comes after decoding, on a GPU one batch ahead."""
        return on_device(batches, self.plan.finish, self.plan.device)

    def pages(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """On which page of the files each image lies."""
        return self.beton.pages(indices)

    def regions(self, indices: NDArray[np.int64]) -> Regions:
        """Where in the files images lie."""
        return Regions(*self.beton.regions(indices))

    def _start(
        self, threads: ThreadPoolExecutor, keys: RngKeys, *, cropper: Cropper, size: tuple[int, int]
    ) -> Wait[Batch]:
        """Begin to decode a batch at ``size`` (height, width in pixels)."""
        # A batch that waits for its turn needs no memory yet.
        images = Later(functools.partial(self._empty_images, (len(keys), *size, 3)))
        labels = self.beton.labels[keys.indices]
        parts = [
            threads.submit(self._decode_share, keys, cropper, images, labels, share)
            for share in shares(len(keys), self.num_workers)
        ]
        return functools.partial(self._wait, parts, images, labels)

    def _empty_images(self, shape: tuple[int, ...]) -> torch.Tensor:
        if self.pin_memory:
            # torch keeps pinned memory itself, and knows which copies to the device are still under way.
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(self._slots.take(int(np.prod(shape))).reshape(shape))

    def _wait(
        self, parts: list[Future[list[CorruptSampleError]]], images: Later[torch.Tensor], labels: NDArray[np.int64]
    ) -> Batch:
        for part in parts:
            self._corruption.record(part.result())
        tensor = torch.from_numpy(labels)
        return Batch(images.get(), tensor.pin_memory() if self.pin_memory else tensor)

    def _decode_share(
        self,
        keys: RngKeys,
        cropper: Cropper,
        memory: Later[torch.Tensor],
        labels: NDArray[np.int64],
        share: slice,
    ) -> list[CorruptSampleError]:
        """Decode one thread's share of a batch; returns what was replaced. Labels follow the images."""
        images = memory.get().numpy()
        mine = keys.part(share)
        with self._decoders.borrow(*self._largest) as decoder:
            failures = decoder.decode(self.beton, mine.indices, self._crops(cropper, mine), images[share])
            for slot, error in failures:
                place = share.start + slot
                substitute = self._substitute(decoder, cropper, mine, error, images[place : place + 1])
                labels[place] = self.beton.labels[substitute]
        return [error for _, error in failures]

    def _substitute(
        self,
        decoder: ImageDecoder,
        cropper: Cropper,
        keys: RngKeys,
        error: CorruptSampleError,
        out: NDArray[np.uint8],
    ) -> int:
        """Decode another sample in place of a corrupt one; returns its index."""
        for index in self._corruption.substitutes(error, keys):
            key = RngKeys(keys.seed, keys.epoch, np.array([index]))
            if not decoder.decode(self.beton, key.indices, self._crops(cropper, key), out):
                return int(index)
        raise error

    def _crops(self, cropper: Cropper, keys: RngKeys) -> Crops:
        heights, widths = (sides[keys.indices].astype(np.int64) for sides in (self.beton.heights, self.beton.widths))
        return cropper.crops(heights, widths, keys)
