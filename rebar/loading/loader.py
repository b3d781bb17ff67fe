"""The Loader, which orders, shards and prefetches samples, and saves its position."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebar.beton.reader import BetonFile, BetonPaths
from rebar.errors import RebarError
from rebar.loading.backend import BackendOptions, Subset, check_subset, open_backend
from rebar.loading.crops import Cropper
from rebar.loading.options import OnError
from rebar.loading.order import (
    ALTERNATIVES,
    SETTINGS,
    WINDOW_BYTES,
    LoaderAttributeError,
    OrderIdentity,
    OrderOption,
    Position,
    Progress,
    check_flag,
    epoch_order,
    from_state,
    rank_and_world_size,
    shard_batches,
    to_state,
    with_copies,
)
from rebar.loading.prefetch import Submit, prefetch, submit_with_request
from rebar.loading.rng import RngKeys
from rebar.storage.page_cache import ReadAhead


class Loader:
    """Streams batches from a beton. A sample's crop depends on (seed, epoch, sample) only.

    A drop-in replacement for ``ffcv.loader.Loader``. For images and labels pass either FFCV's ``pipelines``, or a
    ``cropper`` and a ``resolution`` (pixels), which yields uint8 :class:`Batch` tuples; see docs/loader.md.

    Iterating yields the epoch ``next_epoch``, which then increments. The number of threads, the number of ranks and
    resuming do not change a global batch.

    The arguments from ``batch_size`` to ``recompile`` in the constructor (except ``os_cache``, ``distributed``,
    ``pipelines`` and ``custom_fields``), ``copies``, ``window_pages``, ``resolution`` and ``next_epoch`` are attributes
    that may be set; a change takes effect at the next epoch. Setting any other attribute raises LoaderAttributeError.
    A Loader can be pickled at any time; the copy continues with the same epoch.

    - fname, batch_size: the beton, or several as one dataset (a glob pattern, sorted by name, or a list); samples per
      batch and rank.
    - num_workers: decoding threads; if below 1, the usable cores divided by the ranks on this node.
    - os_cache: read the complete beton into the page cache in the first epoch; None: only if it fits in the available
      memory. Upcoming batches are read ahead in any case.
    - order: an OrderOption of Rebar or FFCV. All ranks share one order.
    - distributed: take ``rank`` and ``world_size`` from torch.distributed or torchrun's environment.
    - seed: the seed of order and augmentation; None means 0.
    - indices: the samples to use; None means all.
    - drop_last: drop an incomplete last global batch. Otherwise it is split evenly over the ranks without repeating a
      sample, so a rank may get fewer samples, or none.
    - batches_ahead: batches in progress in addition to the one the consumer waits for.
    - recompile: if FFCV runs the pipelines, compile them at every epoch.
    - on_error: "raise" an error for a corrupt sample, or "replace" it with another; see :attr:`corrupt_samples`.
    - pin_memory: put uint8 batches into pinned memory for a GPU. Pipelines with ToDevice always do.
    - copies: repeated augmentation: an epoch has 1 / ``copies`` of the samples, each ``copies`` times.
    - window_pages: pages per QUASI_RANDOM window; None means 512 MB.
    """

    __slots__ = (*SETTINGS, "_arguments", "_backend", "_progress", "_read_ahead", "_resume", "__weakref__")
    batch_size: int
    num_workers: int
    order: OrderOption
    seed: int
    drop_last: bool
    batches_ahead: int
    recompile: bool
    copies: int
    window_pages: int
    resolution: int | None
    next_epoch: int

    def __init__(
        self,
        fname: BetonPaths,
        batch_size: int,
        num_workers: int = -1,
        os_cache: bool | None = None,
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
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.order = order
        self.seed = seed  # type: ignore[assignment]  # None means 0
        self.drop_last = drop_last
        self.copies = copies
        self.batches_ahead = batches_ahead
        self.recompile = recompile
        self.resolution = resolution
        self.next_epoch = 0
        distributed = check_flag("distributed", distributed)
        self._arguments = (fname, distributed, *rank_and_world_size(distributed, rank, world_size))
        pool_capacity = self.batches_ahead + 3  # in progress, held by the consumer, and just released by it
        options = BackendOptions(self.batch_size, self.num_workers, pool_capacity, on_error, pin_memory)
        self._backend = open_backend(fname, cropper, pipelines or {}, custom_fields or {}, indices, options)
        self.window_pages = window_pages or max(1, WINDOW_BYTES // self._backend.page_size)
        self._read_ahead = ReadAhead(self._backend, None if os_cache is None else check_flag("os_cache", os_cache))
        self._progress: Progress | None = None
        self._resume = Position(0, 0)
        self._require_a_batch()

    def _require_a_batch(self) -> None:
        if len(self) == 0:
            raise RebarError(
                f"{self._describe_files()}: fewer samples ({self.num_samples}) than one global batch of "
                f"{self.world_size} x {self.batch_size}. Use a smaller batch size.",
                code="loader-too-few-samples",
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute. Raises RebarError for invalid values, LoaderAttributeError for names that cannot be set."""
        check = SETTINGS.get(name)
        try:
            object.__setattr__(self, name, value if check is None else check(name, value))
        except AttributeError:
            advice = ALTERNATIVES.get(name, f"Set one of {', '.join(sorted([*SETTINGS, 'indices']))}.")
            raise LoaderAttributeError(
                f"Loader.{name} cannot be set. {advice}", code="loader-unsupported-attribute"
            ) from None

    def __getattr__(self, name: str) -> Any:
        advice = ALTERNATIVES.get(name, "See docs/loader.md for the attributes of FFCV's Loader that are supported.")
        raise LoaderAttributeError(f"Loader has no attribute {name!r}. {advice}", code="loader-unsupported-attribute")

    @property
    def fname(self) -> BetonPaths:
        """The argument ``fname``."""
        return self._arguments[0]

    @property
    def distributed(self) -> bool:
        """The argument ``distributed``."""
        return self._arguments[1]

    @property
    def rank(self) -> int:
        """The rank."""
        return self._arguments[2]

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self._arguments[3]

    @property
    def indices(self) -> NDArray[np.int64]:
        """The samples in use, over all ranks, int64 ``[n]``. None, when set, means all samples of the files."""
        return self._backend.indices

    @indices.setter
    def indices(self, indices: Subset) -> None:
        self._backend.indices = check_subset(indices, self._backend.num_samples)

    @property
    def beton(self) -> BetonFile:
        """The open beton. Raises RebarError if FFCV reads the file."""
        if self._backend.beton is None:
            raise RebarError(
                f"{self._describe_files()}: FFCV runs these pipelines, so there is no BetonFile. Open the file with "
                "BetonFile.open.",
                code="ffcv-unsupported",
            )
        return self._backend.beton

    @property
    def num_samples(self) -> int:
        """The number of samples in use, over all ranks."""
        return len(self._backend.indices)

    @property
    def corrupt_samples(self) -> dict[int, str]:
        """The samples that this rank has replaced so far: index to reason."""
        return self._backend.corrupt_samples

    @property
    def global_batch(self) -> int:
        """The number of samples per batch, over all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Return the number of batches per epoch, equal on every rank."""
        return self.num_samples // self.global_batch if self.drop_last else -(-self.num_samples // self.global_batch)

    def batch_indices(self, epoch: int, first_sample: int = 0) -> list[NDArray[np.int64]]:
        """Return the samples of each of this rank's batches, skipping the epoch's first ``first_sample`` samples."""
        return [keys.indices for keys in self._batches(epoch, first_sample)]

    def _batches(self, epoch: int, first_sample: int) -> list[RngKeys]:
        keys = RngKeys(self.seed, epoch, self._backend.indices)
        pages = self._backend.pages(keys.indices) if self.order is OrderOption.QUASI_RANDOM else keys.indices
        order = epoch_order(self.order, keys, pages, window_pages=self.window_pages)
        if self.copies == 1:
            return [RngKeys(self.seed, epoch, samples) for samples in self._shard(order[first_sample:])]
        repeated = with_copies(order, self.copies, first_sample=first_sample, global_batch=self.global_batch)
        return [RngKeys(self.seed, epoch, *batch) for batch in zip(*map(self._shard, repeated), strict=True)]

    def _shard(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return shard_batches(
            order,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
        )

    def __iter__(self) -> Iterator[Any]:
        return self.epoch(self.next_epoch)

    def epoch(self, epoch: int, resolution: int | None = None) -> Iterator[Any]:
        """Iterate over an epoch at a resolution (pixels); None means the loader's resolution.

        After :meth:`load_state_dict`, the state's epoch starts at the state's position. Errors are raised on the batch
        they belong to: CorruptSampleError, or PipelineError if FFCV runs the pipelines. Abandoning the iterator ends
        its threads.
        """
        self._require_a_batch()
        first_sample = self._resume.samples if self._resume.epoch == epoch else 0
        batches = self._batches(epoch, first_sample)
        self._resume = Position(epoch, 0)
        self.next_epoch = epoch + 1
        self._progress = Progress(Position(epoch, first_sample), self._identity(), len(batches), self.global_batch)
        return self._iterate(batches, self._progress, resolution or self.resolution)

    def _iterate(self, batches: list[RngKeys], progress: Progress, resolution: int | None) -> Iterator[Any]:
        tasks = self._tasks(batches, resolution)
        # With one thread per batch, fewer batches in progress than threads would leave threads idle.
        depth = max(self.batches_ahead, self.num_workers if self._backend.one_thread_per_batch else 0)
        with closing(prefetch(tasks, num_threads=self.num_workers, depth=depth)) as decoded:
            for batch in self._backend.finish(decoded):
                progress.yielded += 1
                yield batch

    def _tasks(self, batches: list[RngKeys], resolution: int | None) -> Iterator[Submit[Any]]:
        submit_batch = self._backend.begin_epoch(resolution, num_workers=self.num_workers, recompile=self.recompile)
        start = self.rank / self.world_size
        request = self._read_ahead.begin_epoch(self.indices, [keys.indices for keys in batches], start=start)
        for number, keys in enumerate(batches):
            submit = functools.partial(submit_batch, keys=keys)
            yield functools.partial(submit_with_request, submit, request, number) if request else submit

    def state_dict(self, batches_used: int | None = None) -> dict[str, Any]:
        """Return the position for :meth:`load_state_dict`, the same on every rank.

        Mid-epoch, this is the position after the batches yielded so far. If a prefetcher between the loader and the
        training loop holds batches that were not trained on yet, pass the number of batches of this iteration that
        were trained on as ``batches_used``.
        """
        if self._progress is None:
            samples = self._resume.samples if self._resume.epoch == self.next_epoch else 0
            return to_state(Position(self.next_epoch, samples), self._identity())
        position = self._progress.position(batches_used)
        if position.samples == 0 and position.epoch > self._progress.start.epoch:
            return to_state(Position(self.next_epoch, 0), self._identity())
        return to_state(position, self._progress.identity)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume exactly at the saved position, with any number of ranks and any batch size.

        Raises RebarError if the state belongs to other data, or to another seed or order.
        """
        self._resume = from_state(state, self._identity())
        self._progress = None
        self.next_epoch = self._resume.epoch

    def _describe_files(self) -> str:
        first, *others = self._backend.files
        return f"{first}{f' and {len(others)} more' if others else ''}"

    def _identity(self) -> OrderIdentity:
        digest = hashlib.sha256(self._backend.indices.tobytes()).hexdigest()[:16]
        return OrderIdentity(self.seed, self.order.name, self.num_samples, self.copies, self.window_pages, digest)
