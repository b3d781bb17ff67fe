"""Run arbitrary FFCV pipelines: FFCV compiles their graph, and the loader's threads execute it, one batch per thread.

Each batch runs in a single thread, so that numba's thread-local random generators can be seeded for it.
"""

import functools
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rebar.beton.format import BetonError
from rebar.errors import RebarError
from rebar.loading.backend import BackendOptions
from rebar.loading.prefetch import BufferPool, GetResult, SubmitBatch, wait_on_current_stream
from rebar.loading.rng import RngKeys, Stream, random_bits
from rebar.storage.page_cache import Regions, mapping_of

_compiling = threading.Lock()


@functools.cache
def ffcv_compiler() -> Any:
    """Import FFCV and return its Compiler class, keeping torch's number of threads, which FFCV's import sets to one.

    Raises RebarError if FFCV is not installed.
    """
    torch_threads = torch.get_num_threads()
    try:
        from ffcv.pipeline.compiler import Compiler
    except ImportError as error:
        raise RebarError(
            f"FFCV: cannot be imported ({error}), but these pipelines need it. Install it with scripts/setup.sh, or "
            "use Loader(..., cropper=...), which does not need FFCV.",
            code="ffcv-not-installed",
        ) from None
    finally:
        torch.set_num_threads(torch_threads)
    return Compiler


@contextmanager
def single_threaded_code() -> Iterator[None]:
    """Make FFCV compile code for one thread.

    Code for several threads uses numba's threading layers, which crash when two loaders run concurrently.
    """
    compiler = ffcv_compiler()
    with _compiling:
        before = compiler.num_threads
        compiler.num_threads = 1
        try:
            yield
        finally:
            compiler.num_threads = before


@dataclass(frozen=True, eq=False)
class FfcvFile:
    """A beton with fields of any type, opened by FFCV's reader.

    ``handlers`` are FFCV's fields by name, ``metadata`` the sample records, and ``storage`` the file's bytes with the
    regions' addresses and sizes, which compiled code reads.
    """

    path: Path
    num_samples: int
    page_size: int
    handlers: Mapping[str, Any]
    metadata: NDArray[Any]
    storage: tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint64]]
    pages: NDArray[np.int64]
    """The page of each sample's first region."""
    custom_fields: Mapping[str, Any]
    _by_sample: NDArray[Any]  # the allocation table, sorted by sample

    def __reduce__(self) -> tuple[Any, ...]:
        return FfcvFile.open, (self.path, self.custom_fields)

    @staticmethod
    def open(path: Path, custom_fields: Mapping[str, Any]) -> "FfcvFile":
        """Open a file. Raises BetonError if it is truncated."""
        ffcv_compiler()
        from ffcv.reader import Reader

        reader = Reader(str(path), custom_fields)
        table = reader.alloc_table[np.argsort(reader.alloc_table["ptr"], kind="stable")]
        if len(table) and int((table["ptr"] + table["size"]).max()) > path.stat().st_size:
            raise BetonError(
                f"{path}: truncated or damaged: a sample is stored beyond the end of the file. Copy it again.",
                code="beton-truncated",
            )
        first = np.zeros(int(reader.num_samples), np.uint64)
        first[table["sample_id"][::-1].astype(np.int64)] = table["ptr"][::-1]  # the first region is written last
        addresses, sizes = (np.ascontiguousarray(table[name]) for name in ("ptr", "size"))
        return FfcvFile(
            path=path,
            num_samples=int(reader.num_samples),
            page_size=int(reader.page_size),
            handlers=reader.handlers,
            metadata=reader.metadata,
            storage=(np.asarray(np.memmap(path, np.uint8, mode="r")), addresses, sizes),
            pages=(first // np.uint64(reader.page_size)).astype(np.int64),
            custom_fields=custom_fields,
            _by_sample=table[np.argsort(table["sample_id"], kind="stable")],
        )

    def regions(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return the offsets and sizes (bytes) of all regions of the samples."""
        samples, wanted = self._by_sample["sample_id"], indices.astype(np.uint64)
        first, end = (np.searchsorted(samples, wanted, side) for side in ("left", "right"))
        before = np.cumsum(end - first) - (end - first)
        rows = np.arange((end - first).sum()) + np.repeat(first - before, end - first)
        return self._by_sample["ptr"][rows], self._by_sample["size"][rows]


def compile_read() -> Any:
    """Compile the function that decoders read with. It returns the bytes of the region at an address of ``storage``."""

    def read(address, storage):  # type: ignore[no-untyped-def]
        size = storage[2][np.searchsorted(storage[1], address)]
        return storage[0][address : address + size]

    return ffcv_compiler().compile(read)


_SHOWN_SAMPLES = 8


class PipelineError(RebarError):
    """An operation of a pipeline failed. The message names the batch's samples; ``__cause__`` is the exception."""


class FfcvBackend:
    """FFCV's graph over one file; a :class:`rebar.loading.backend.Backend`."""

    beton = None
    one_thread_per_batch = True

    def __init__(
        self, file: FfcvFile, pipelines: Mapping[str, Any], indices: NDArray[np.int64], options: BackendOptions
    ) -> None:
        from ffcv.pipeline.graph import Graph

        self.indices = indices
        self.num_samples = file.num_samples
        self.files = (file.path,)
        self.mappings = (mapping_of(file.storage[0]),)
        self.page_size = file.page_size
        self.corrupt_samples: dict[int, str] = {}
        self._file = file
        self._pipelines = pipelines
        self._options = options
        capacity = options.pool_capacity + options.num_workers  # each thread works on its own batch
        # One pool per buffer of each operation, because the sizes differ.
        self._buffers: dict[Any, BufferPool] = defaultdict(lambda: BufferPool(capacity))
        numbers = {name: number for number, name in enumerate(file.handlers)}
        with single_threaded_code():
            specs = _pipeline_specs(pipelines, list(numbers))
            self._graph = Graph(specs, file.handlers, numbers, file.metadata, compile_read())
            self._memory, code = self._graph.collect_requirements()
            self._stages, self._outputs = self._graph.codegen_all(code)

    def __reduce__(self) -> tuple[Any, ...]:
        return FfcvBackend, (self._file, self._pipelines, self.indices, self._options)

    def begin_epoch(self, resolution: int | None, *, num_workers: int, recompile: bool) -> SubmitBatch:
        """Query the operations' memory, since sizes may have changed, and return the function that starts a batch."""
        if resolution is not None:
            raise RebarError(
                "resolution: not supported if FFCV runs the pipelines. Set their decoder's output_size instead.",
                code="ffcv-unsupported",
            )
        with single_threaded_code():
            self._memory, code = self._graph.collect_requirements()
            if recompile:
                self._stages, self._outputs = self._graph.codegen_all(code)
        return self._start

    def finish(self, batches: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Return the batches unchanged."""
        return batches

    def pages(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the page of each sample."""
        return self._file.pages[indices]

    def regions(self, indices: NDArray[np.int64]) -> Regions:
        """Return the byte ranges of samples."""
        offsets, sizes = self._file.regions(indices)
        return Regions(np.zeros(len(offsets), np.int64), offsets, sizes)

    def _start(self, threads: ThreadPoolExecutor, keys: RngKeys) -> GetResult[tuple[Any, ...]]:
        return functools.partial(_wait, threads.submit(self._run, keys), keys)

    def _run(self, keys: RngKeys) -> tuple[tuple[Any, ...], "torch.cuda.Event | None"]:
        _seed_generators(keys)
        values: dict[str, Any] = {
            "batch_indices": keys.indices.astype(np.uint64),
            "metadata": self._file.metadata,
            "storage_state": self._file.storage,
        }
        for kind, prefix in (("operation", "memory"), ("shared", "shared_memory")):
            for node, query in self._memory[kind].items():
                values[f"{prefix}_{node}"] = self._allocate(query, len(keys), (prefix, node))
        for code, defined in self._stages:
            for node, result in zip(defined, code(**values), strict=False):
                values[f"result_{node}"] = result
        outputs = tuple(values[f"result_{node}"] for node in self._outputs)
        return outputs, _record_event(outputs)

    def _allocate(self, query: Any, count: int, purpose: Hashable) -> Any:
        """Allocate the memory of an AllocationQuery for ``count`` samples. FFCV's operations may return it."""
        if query is None:
            return None
        if isinstance(query, Sequence):
            return tuple(self._allocate(part, count, (purpose, number)) for number, part in enumerate(query))
        shape = (count, *(int(side) for side in query.shape))
        if not isinstance(query.dtype, torch.dtype):
            return self._allocate_host(shape, np.dtype(query.dtype), purpose)
        if query.device is not None and torch.device(query.device).type != "cpu":
            return torch.empty(shape, dtype=query.dtype, device=query.device)
        dtype = torch.empty(0, dtype=query.dtype).numpy().dtype
        return torch.from_numpy(self._allocate_host(shape, dtype, purpose))

    def _allocate_host(self, shape: tuple[int, ...], dtype: np.dtype[Any], purpose: Hashable) -> NDArray[Any]:
        # Always a full batch, so that the smaller last batch leaves no smaller buffers in the pool.
        full = (max(self._options.batch_size, shape[0]), *shape[1:])
        memory = self._buffers[purpose].take(int(np.prod(full)) * dtype.itemsize)
        return memory.view(dtype).reshape(full)[: shape[0]]


def _wait(task: "Future[tuple[tuple[Any, ...], torch.cuda.Event | None]]", keys: RngKeys) -> tuple[Any, ...]:
    try:
        outputs, done = task.result()
    except Exception as error:
        samples = ", ".join(map(str, keys.indices[:_SHOWN_SAMPLES])) + (", ..." if len(keys) > _SHOWN_SAMPLES else "")
        raise PipelineError(
            f"FFCV pipeline: an operation failed in epoch {keys.epoch} on the batch of samples {samples}: "
            f"{type(error).__name__}: {error}. Check these samples and the operation.",
            code="ffcv-pipeline-failed",
        ) from error
    if done is not None:
        wait_on_current_stream(outputs, done)
    return outputs


def _record_event(outputs: tuple[Any, ...]) -> "torch.cuda.Event | None":
    devices = {value.device for value in outputs if isinstance(value, torch.Tensor) and value.is_cuda}
    return torch.cuda.current_stream(devices.pop()).record_event() if devices else None


def _pipeline_specs(pipelines: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Return an FFCV PipelineSpec per output, as FFCV's Loader does; a pipeline of None omits the field."""
    from ffcv.pipeline import PipelineSpec

    specs = {}
    for name in [*names, *(name for name in pipelines if name not in names)]:
        pipeline = pipelines.get(name, ())
        if isinstance(pipeline, PipelineSpec):
            specs[name] = pipeline
        elif name not in pipelines:
            specs[name] = PipelineSpec(name)
        elif isinstance(pipeline, Sequence):
            specs[name] = PipelineSpec(name, decoder=None, transforms=list(pipeline))
        elif pipeline is not None:
            raise RebarError(
                f"pipeline {name!r}: {type(pipeline).__name__} is not a pipeline. Pass a list of operations or a "
                "PipelineSpec.",
                code="loader-invalid-argument",
            )
    return specs


@functools.cache
def _numba_seeder() -> Callable[[int], None]:
    import numba

    @numba.njit(nogil=True)
    def seed_this_thread(seed):  # type: ignore[no-untyped-def]
        np.random.seed(seed)
        random.seed(seed)

    return seed_this_thread


def _seed_generators(keys: RngKeys) -> None:
    """Seed numba's generators of this thread with a function of (seed, epoch, the batch's first sample)."""
    if len(keys):
        bits = random_bits(RngKeys(keys.seed, keys.epoch, keys.indices[:1]), Stream.NUMBA)
        _numba_seeder()(int(bits[0, 0] & np.uint64(0xFFFFFFFF)))
