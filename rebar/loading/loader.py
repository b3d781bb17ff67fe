"""The Loader: which samples, in which order, whose share, from where on."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.beton.reader import BetonFile, Files
from rebar.errors import RebarError
from rebar.loading.crops import Cropper
from rebar.loading.decode import OnError
from rebar.loading.open_source import SourceOptions, Subset, open_source
from rebar.loading.order import (
    WINDOW_BYTES,
    OrderIdentity,
    OrderOption,
    Position,
    Progress,
    epoch_order,
    from_state,
    order_option,
    rank_and_world_size,
    shard_batches,
    threads_per_process,
    to_state,
    with_copies,
)
from rebar.loading.prefetch import Start, prefetch
from rebar.loading.readahead import ReadAhead
from rebar.loading.rng import RngKeys


class Loader:
    """Streams a .beton as batches that depend on (seed, epoch, sample) only.

    Takes what ``ffcv.loader.Loader`` takes. For images and labels give either ``pipelines``, FFCV's, or
    a ``cropper`` and a ``resolution`` (pixels), which gives a :class:`Batch` of bytes: see docs/loader.md.

    Iterating goes through the epoch ``next_epoch``, which counts up. Neither the number of threads nor of
    processes nor a restart changes a global batch.

    - fname, batch_size: the file, or several as one dataset: a pattern of shell wildcards (in the names' order), or
      a list; samples a batch and process.
    - num_workers: decoding threads; below one, the usable cores divided by this machine's processes.
    - os_cache: the file fits in memory; if not, coming samples are read ahead.
    - order: an OrderOption, ours or FFCV's; one global order for all processes.
    - distributed: ask torch.distributed or torchrun's environment for ``rank`` and ``world_size``.
    - seed: of order and augmentation; None is 0.
    - indices: the samples to use; None is all.
    - drop_last: leave an incomplete last global batch out; else it is dealt out evenly, so that a process
      gets fewer samples, or none, but no sample comes twice.
    - batches_ahead: batches being made beside the one that is waited for.
    - recompile: where FFCV runs the pipelines, compile them at every epoch.
    - on_error: "raise" at a corrupt sample, or "replace" it by another: see :attr:`corrupt_samples`.
    - pin_memory: bytes in pinned memory, for a GPU; pipelines with a ToDevice do so by themselves.
    - copies: crops of an image in a batch, repeated augmentation: each epoch visits one in ``copies`` of the
      samples, as often, in as many batches.
    - window_pages: how many of the file's pages QUASI_RANDOM mixes; None, 512 MB of them.
    """

    def __init__(
        self,
        fname: Files,
        batch_size: int,
        num_workers: int = -1,
        os_cache: bool = True,
        order: Any = OrderOption.SEQUENTIAL,
        distributed: bool = False,
        seed: int | None = None,
        indices: Subset = None,
        pipelines: Mapping[str, Any] | None = None,
        custom_fields: Mapping[str, Any] | None = None,
        drop_last: bool = True,
        batches_ahead: int = 3,
        recompile: bool = False,
        *,
        cropper: Cropper | None = None,
        resolution: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        on_error: OnError = "raise",
        pin_memory: bool = False,
        window_pages: int | None = None,
        copies: int = 1,
    ) -> None:
        if batch_size < 1 or batches_ahead < 0 or copies < 1:
            raise RebarError(
                f"batch_size {batch_size}, batches_ahead {batches_ahead} and copies {copies}: at least 1, 0 and 1"
            )
        self.batch_size = batch_size
        self.num_workers = threads_per_process(num_workers)
        self.order = order_option(order)
        self.seed = seed or 0
        self.drop_last = drop_last
        self.copies = copies
        self.batches_ahead = batches_ahead
        self.resolution = resolution
        self.rank, self.world_size = rank_and_world_size(distributed, rank, world_size)
        self.next_epoch = 0
        keep_slots = batches_ahead + 3  # being made; the consumer's; and the one it has just let go
        options = SourceOptions(batch_size, self.num_workers, keep_slots, on_error, pin_memory, recompile)
        self._source = open_source(fname, cropper, pipelines or {}, custom_fields or {}, indices, options)
        self.window_pages = window_pages or max(1, WINDOW_BYTES // self._source.page_size)
        self._read_ahead = None if os_cache else ReadAhead(self._source.files)
        self._progress: Progress | None = None
        self._resume = Position(0, 0)
        if len(self) == 0:
            raise RebarError(
                f"{self._described()} holds {self.num_samples} samples, less than one global batch of "
                f"{self.world_size} x {batch_size}: choose a smaller batch size"
            )

    # ------------------------------------------------------------------ what it has

    @property
    def beton(self) -> BetonFile:
        """The file. Raises RebarError for one without images and labels, which only FFCV can read."""
        if self._source.beton is None:
            raise RebarError(
                f"{self._described()}: FFCV runs these pipelines, so the file was not opened as a BetonFile"
            )
        return self._source.beton

    @property
    def num_samples(self) -> int:
        """Of all processes together."""
        return len(self._source.indices)

    @property
    def corrupt_samples(self) -> dict[int, str]:
        """What could not be decoded and was replaced, on this process so far: sample to reason."""
        return self._source.corrupt_samples

    @property
    def global_batch(self) -> int:
        """Samples a batch, of all processes together."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Batches of a whole epoch; the same on every process."""
        return self.num_samples // self.global_batch if self.drop_last else -(-self.num_samples // self.global_batch)

    def batch_indices(self, epoch: int, first_sample: int = 0) -> list[NDArray[np.int64]]:
        """The samples of each of this process's batches, when ``first_sample`` of the epoch's are left out."""
        return [keys.indices for keys in self._batches(epoch, first_sample)]

    def _batches(self, epoch: int, first_sample: int) -> list[RngKeys]:
        keys = RngKeys(self.seed, epoch, self._source.indices)
        pages = self._source.pages(keys.indices) if self.order is OrderOption.QUASI_RANDOM else keys.indices
        order = epoch_order(self.order, keys, pages, window_pages=self.window_pages)
        if self.copies == 1:
            return [RngKeys(self.seed, epoch, samples) for samples in self._share(order[first_sample:])]
        both = with_copies(order, self.copies, first_sample=first_sample, global_batch=self.global_batch)
        return [RngKeys(self.seed, epoch, *batch) for batch in zip(*map(self._share, both), strict=True)]

    def _share(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return shard_batches(
            order,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
        )

    # ------------------------------------------------------------------ going through it

    def __iter__(self) -> Iterator[Any]:
        return self.epoch(self.next_epoch)

    def epoch(self, epoch: int, resolution: int | None = None) -> Iterator[Any]:
        """Go through an epoch, at a resolution (pixels; None: the usual one). May be left early.

        After :meth:`load_state_dict` the epoch of the state begins where the state was taken. Raises what
        went wrong at the batch it belongs to: CorruptSampleError, or PipelineError where FFCV runs the
        pipelines.
        """
        first_sample = self._resume.samples if self._resume.epoch == epoch else 0
        batches = self._batches(epoch, first_sample)
        self._resume = Position(epoch, 0)
        self.next_epoch = epoch + 1
        self._progress = Progress(Position(epoch, first_sample), len(batches), self.global_batch)
        return self._go_through(batches, self._progress, resolution or self.resolution)

    def _go_through(self, batches: list[RngKeys], progress: Progress, resolution: int | None) -> Iterator[Any]:
        starts = self._starts(batches, resolution)
        # Where FFCV runs the pipelines a thread makes a whole batch, so as many must be under way.
        ahead = max(self.batches_ahead, self.num_workers if self._source.whole_batches else 0)
        with closing(prefetch(starts, num_threads=self.num_workers, ahead=ahead)) as made:
            for batch in self._source.finish(made):
                progress.taken += 1
                yield batch

    def _starts(self, batches: list[RngKeys], resolution: int | None) -> Iterator[Start[Any]]:
        start_batch = self._source.begin_epoch(resolution)
        indices = [keys.indices for keys in batches]
        for number, keys in enumerate(batches):
            if self._read_ahead is not None:
                self._read_ahead.request(number, indices, self._source.regions)
            yield functools.partial(start_batch, keys=keys)

    # ------------------------------------------------------------------ stopping and going on

    def state_dict(self, batches_used: int | None = None) -> dict[str, Any]:
        """Where the loader stands, for :meth:`load_state_dict`: the same on every process.

        In the middle of an epoch: behind the batches that were taken. Where something between here and the
        training holds batches that were not trained on yet (a prefetcher), say with ``batches_used`` how
        many of this pass were.
        """
        if self._progress is None:
            position = Position(self.next_epoch, self._resume.samples if self._resume.epoch == self.next_epoch else 0)
        else:
            position = self._progress.position(batches_used)
            if position.samples == 0 and position.epoch > self._progress.start.epoch:
                position = Position(self.next_epoch, 0)
        return to_state(position, self._identity())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken, exactly, with any number of processes and any batch size.

        Raises RebarError for a state of other data, or of another seed or order.
        """
        self._resume = from_state(state, self._identity())
        self._progress = None
        self.next_epoch = self._resume.epoch

    def _described(self) -> str:
        """The files, for messages."""
        first, *others = self._source.files
        return f"{first} and {len(others)} more" if others else str(first)

    def _identity(self) -> OrderIdentity:
        digest = hashlib.sha256(self._source.indices.tobytes()).hexdigest()[:16]
        return OrderIdentity(self.seed, self.order.name, self.num_samples, self.copies, self.window_pages, digest)
