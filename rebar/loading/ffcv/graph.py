"""FFCV, imported without what its import does to others.

A .beton as FFCV's reader sees it, of whatever fields, and its memory.

Any FFCV pipeline: FFCV compiles its graph, our threads run it, one batch a thread.

What FFCV's own loader does around its graph is done anew here: the file's memory, the buffers, the loop.
A batch runs in one thread from start to end, so numba's random numbers can be seeded for it.
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
from rebar.loading.batch_source import Regions, StartBatch
from rebar.loading.device import wait_on_current_stream
from rebar.loading.prefetch import BufferPool, Wait
from rebar.loading.rng import RngKeys, Stream, random_bits

_compiling = threading.Lock()


@functools.cache
def ffcv_compiler() -> Any:
    """FFCV's Compiler. Importing it sets torch to one thread; here torch keeps its threads.

    Raises RebarError where FFCV is not installed.
    """
    import torch

    torch_threads = torch.get_num_threads()
    try:
        from ffcv.pipeline.compiler import Compiler
    except ImportError as error:
        raise RebarError(
            f"FFCV cannot be imported ({error}), and these pipelines need it: install it as scripts/setup.sh does, "
            "or use Loader(..., cropper=...), which does without"
        ) from None
    finally:
        torch.set_num_threads(torch_threads)
    return Compiler


@contextmanager
def one_thread_code() -> Iterator[None]:
    """FFCV compiles for one thread within: code that needs none of numba's threading layers.

    Those crash when two loaders run at once; our threads run one batch each instead.
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
    """``handlers`` are FFCV's fields by name, ``metadata`` the samples' records, ``storage`` what code reads from."""

    path: Path
    num_samples: int
    page_size: int
    handlers: Mapping[str, Any]
    metadata: NDArray[Any]
    storage: tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint64]]
    pages: NDArray[np.int64]
    """On which page each sample begins."""
    _region_samples: NDArray[np.uint64]

    @staticmethod
    def open(path: Path, custom_fields: Mapping[str, Any]) -> "FfcvFile":
        """Raises BetonError for a file that is cut short."""
        ffcv_compiler()
        from ffcv.reader import Reader

        reader = Reader(str(path), custom_fields)
        table = reader.alloc_table[np.argsort(reader.alloc_table["ptr"], kind="stable")]
        if len(table) and int((table["ptr"] + table["size"]).max()) > path.stat().st_size:
            raise BetonError(f"{path}: is cut short or damaged: a sample lies behind its end; copy it again")
        first = np.zeros(int(reader.num_samples), np.uint64)
        first[table["sample_id"][::-1].astype(np.int64)] = table["ptr"][::-1]  # the first region is written last
        regions = [np.ascontiguousarray(table[name]) for name in ("ptr", "size", "sample_id")]
        return FfcvFile(
            path=path,
            num_samples=int(reader.num_samples),
            page_size=int(reader.page_size),
            handlers=reader.handlers,
            metadata=reader.metadata,
            storage=(np.asarray(np.memmap(path, np.uint8, mode="r")), regions[0], regions[1]),
            pages=(first // np.uint64(reader.page_size)).astype(np.int64),
            _region_samples=regions[2],
        )

    def regions(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Where samples lie: offsets and sizes (bytes)."""
        mine = np.isin(self._region_samples, indices.astype(np.uint64))
        return self.storage[1][mine], self.storage[2][mine]


def compile_read() -> Any:
    """The function by which compiled decoders read: the bytes of the region at an address of ``storage``."""

    def read(address, storage):  # type: ignore[no-untyped-def]
        size = storage[2][np.searchsorted(storage[1], address)]
        return storage[0][address : address + size]

    return ffcv_compiler().compile(read)


_SHOWN = 8


class PipelineError(RebarError):
    """An operation of a pipeline failed; the message names the batch's samples, ``__cause__`` is the error."""


class FfcvGraph:
    """FFCV's graph over one file, for batches of up to ``batch_size``."""

    beton = None
    whole_batches = True

    def __init__(
        self,
        file: FfcvFile,
        pipelines: Mapping[str, Any],
        *,
        indices: NDArray[np.int64],
        batch_size: int,
        keep_slots: int,
        recompile: bool,
    ) -> None:
        from ffcv.pipeline.graph import Graph

        self.indices = indices
        self.files = (file.path,)
        self.page_size = file.page_size
        self.corrupt_samples: dict[int, str] = {}
        self._file = file
        self._batch_size = batch_size
        self._recompile = recompile
        # A pool for each buffer of each operation, whose size stays the same.
        self._slots: dict[Any, BufferPool] = defaultdict(lambda: BufferPool(keep_slots))
        numbers = {name: number for number, name in enumerate(file.handlers)}
        with one_thread_code():
            specs = _specs(pipelines, list(numbers))
            self._graph = Graph(specs, file.handlers, numbers, file.metadata, compile_read())
            self._needs, code = self._graph.collect_requirements()
            self._stages, self._outputs = self._graph.codegen_all(code)

    def begin_epoch(self, resolution: int | None) -> StartBatch:
        """How to start a batch of the coming epoch; the operations are asked again what memory they need."""
        if resolution is not None:
            raise RebarError("resolution: these pipelines are FFCV's to run; set their decoder's output_size instead")
        with one_thread_code():
            self._needs, code = self._graph.collect_requirements()
            if self._recompile:
                self._stages, self._outputs = self._graph.codegen_all(code)
        return self._start

    def finish(self, batches: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Nothing is left to do."""
        return batches

    def pages(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """On which page of the file each sample begins."""
        return self._file.pages[indices]

    def regions(self, indices: NDArray[np.int64]) -> Regions:
        """Where in the file samples lie."""
        offsets, sizes = self._file.regions(indices)
        return Regions(np.zeros(len(offsets), np.int64), offsets, sizes)

    def _start(self, threads: ThreadPoolExecutor, keys: RngKeys) -> Wait[tuple[Any, ...]]:
        return functools.partial(_wait, threads.submit(self._run, keys), keys)

    def _run(self, keys: RngKeys) -> tuple[tuple[Any, ...], "torch.cuda.Event | None"]:
        _seed_generators(keys)
        values: dict[str, Any] = {
            "batch_indices": keys.indices.astype(np.uint64),
            "metadata": self._file.metadata,
            "storage_state": self._file.storage,
        }
        for kind, prefix in (("operation", "memory"), ("shared", "shared_memory")):
            for node, query in self._needs[kind].items():
                values[f"{prefix}_{node}"] = self._allocate(query, len(keys), (prefix, node))
        for code, defined in self._stages:
            for node, result in zip(defined, code(**values), strict=False):
                values[f"result_{node}"] = result
        outputs = tuple(values[f"result_{node}"] for node in self._outputs)
        return outputs, _cuda_event(outputs)

    def _allocate(self, query: Any, count: int, purpose: Hashable) -> Any:
        """Memory for ``count`` samples; FFCV's operations write into it, and may give it out."""
        if query is None:
            return None
        if isinstance(query, Sequence):
            return tuple(self._allocate(part, count, (purpose, number)) for number, part in enumerate(query))
        shape = (count, *(int(side) for side in query.shape))
        if not isinstance(query.dtype, torch.dtype):
            return self._host_memory(shape, np.dtype(query.dtype), purpose)
        if query.device is not None and torch.device(query.device).type != "cpu":
            return torch.empty(shape, dtype=query.dtype, device=query.device)
        dtype = torch.empty(0, dtype=query.dtype).numpy().dtype
        return torch.from_numpy(self._host_memory(shape, dtype, purpose))

    def _host_memory(self, shape: tuple[int, ...], dtype: np.dtype[Any], purpose: Hashable) -> NDArray[Any]:
        # The largest batch's size, so that the last and smaller one leaves no smaller slots behind.
        whole = (max(self._batch_size, shape[0]), *shape[1:])
        memory = self._slots[purpose].take(int(np.prod(whole)) * dtype.itemsize)
        return memory.view(dtype).reshape(whole)[: shape[0]]


def _wait(running: "Future[tuple[tuple[Any, ...], torch.cuda.Event | None]]", keys: RngKeys) -> tuple[Any, ...]:
    try:
        outputs, done = running.result()
    except Exception as error:
        shown = ", ".join(map(str, keys.indices[:_SHOWN])) + (", ..." if len(keys) > _SHOWN else "")
        raise PipelineError(
            f"an operation of the pipeline failed in epoch {keys.epoch}, on the batch of samples {shown}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if done is not None:
        wait_on_current_stream(outputs, done)
    return outputs


def _cuda_event(outputs: tuple[Any, ...]) -> "torch.cuda.Event | None":
    devices = {value.device for value in outputs if isinstance(value, torch.Tensor) and value.is_cuda}
    return torch.cuda.current_stream(devices.pop()).record_event() if devices else None


def _specs(pipelines: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """A PipelineSpec for every output, as FFCV's Loader makes them; None leaves a field out."""
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
            raise RebarError(f"the pipeline of {name!r} is neither a list of operations nor a PipelineSpec")
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
    """Make what compiled operations draw a function of (seed, epoch, the batch's first sample)."""
    if len(keys):
        bits = random_bits(RngKeys(keys.seed, keys.epoch, keys.indices[:1]), Stream.FOREIGN)
        _numba_seeder()(int(bits[0, 0] & np.uint64(0xFFFFFFFF)))
