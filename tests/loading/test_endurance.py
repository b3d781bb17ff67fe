"""Long-running loaders do not leak, reuse memory, keep held batches intact, and never hang."""

import os
import resource
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray

from rebar.beton import BetonFile
from rebar.loading import Batch, CenterCrop, Loader, OrderOption, RandomResizedCrop
from rebar.loading.crops import Crops
from rebar.loading.rng import RngKeys

ROOT = Path(__file__).resolve().parents[2]


def make_loader(beton: BetonFile, resolution: int = 32, num_workers: int = 3) -> Loader:
    return Loader(
        beton.path,
        8,
        num_workers,
        False,
        OrderOption.RANDOM,
        cropper=RandomResizedCrop(),
        resolution=resolution,
        drop_last=False,
    )


@pytest.mark.parametrize("epochs", [12, pytest.param(100, marks=pytest.mark.nightly)])
def test_many_epochs_leak_neither_memory_nor_files_nor_threads(epochs: int, numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    process = psutil.Process()

    def usage() -> tuple[int, int, int]:
        for epoch in range(epochs):
            batches = loader.epoch(epoch, 16 + 16 * (epoch % 3))
            for _ in islice(batches, 3 if epoch % 4 == 0 else None):  # every fourth epoch is abandoned
                pass
            del batches
        return process.memory_info().rss, process.num_fds(), threading.active_count()

    memory, files, threads = usage()
    later_memory, later_files, later_threads = usage()
    assert later_memory - memory < 8 << 20
    assert (later_files, later_threads) == (files, threads)


def test_buffers_are_reused_between_epochs(numbers: BetonFile) -> None:
    loader = make_loader(numbers, resolution=128)
    addresses = [{batch.images.data_ptr() for batch in loader} for _ in range(5)]
    assert len(set.union(*addresses)) <= loader.batches_ahead + 3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in loader:
        pass
    bytes_per_epoch = len(numbers) * 128 * 128 * 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < bytes_per_epoch / 4096 / 4


def test_held_batches_are_not_overwritten_over_several_epochs(numbers: BetonFile) -> None:
    """Batches are held as tensors, as views and as NumPy arrays."""
    loader = make_loader(numbers)
    held, copies = [], []
    for _ in range(3):
        for number, batch in enumerate(loader):
            holder = (batch.images, batch.images[1:3].permute(0, 3, 1, 2), batch.images.numpy()[:, ::2])[number % 3]
            held += [torch.as_tensor(holder), batch.labels]
            copies += [held[-2].clone(), batch.labels.clone()]
            del batch, holder
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


@pytest.mark.parametrize("num_workers", [1, 64])
def test_two_interleaved_loaders_with_one_or_many_threads(num_workers: int, numbers: BetonFile) -> None:
    expected_images = [batch.images.clone() for batch in make_loader(numbers)]
    first, second = (make_loader(numbers, num_workers=num_workers) for _ in range(2))
    for expected, a, b in zip(expected_images, first, second, strict=True):
        assert torch.equal(a.images, expected)
        assert torch.equal(b.images, expected)


def test_two_loaders_in_two_threads(numbers: BetonFile) -> None:
    results: dict[int, list[Batch]] = {}

    def iterate(number: int) -> None:
        results[number] = [Batch(images.clone(), labels) for images, labels in make_loader(numbers)]

    threads = [threading.Thread(target=iterate, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(torch.equal(a.images, b.images) for a, b in zip(results[0], results[1], strict=True))


class CountingCrop:
    """Counts the batches whose decoding has started."""

    def __init__(self) -> None:
        self.calls = 0

    def crops(self, heights: NDArray[np.int64], widths: NDArray[np.int64], keys: RngKeys) -> Crops:
        self.calls += 1
        return CenterCrop().crops(heights, widths, keys)


def test_slow_consumer_bounds_the_number_of_batches_in_progress(numbers: BetonFile) -> None:
    counting = CountingCrop()
    loader = Loader(numbers.path, 8, 1, cropper=counting, resolution=8, batches_ahead=2)
    for number, _ in enumerate(islice(loader, 5), start=1):
        deadline = time.monotonic() + 60
        while counting.calls < number + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)  # enough for an unbounded loader to start more batches
        assert counting.calls == number + 2


def run_python(code: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_process_exits_with_an_abandoned_epoch(numbers: BetonFile) -> None:
    done = run_python(
        "from rebar.loading import *\n"
        f"loader = Loader({str(numbers.path)!r}, 8, 4, cropper=RandomResizedCrop(), resolution=32)\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
        "print('abandoned')\n"
    )
    assert (done.stdout, done.returncode) == ("abandoned\n", 0), done.stderr


def test_second_process_loads_the_cached_kernel_without_numba(textures: BetonFile) -> None:
    code = (
        "import sys\n"
        "from rebar.loading import *\n"
        f"next(iter(Loader({str(textures.path)!r}, 4, 2, cropper=RandomResizedCrop(), resolution=32)))\n"
        "print(sorted({'numba', 'llvmlite'} & set(sys.modules)))\n"
    )
    next(iter(make_loader(textures)))  # compiles the kernels if they are not in the cache
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


PEAK_MEMORY = """
import threading, time, torch

def private_memory():  # memory that is not mapped from files (man 5 proc, smaps), MB
    fields = (line.split() for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return sum(int(kb) for name, kb, *_ in fields if name in ("Pss_Anon:", "Pss_Shmem:")) / 1000

idle = peak = private_memory()

def watch():
    global peak
    while True:
        peak = max(peak, private_memory())
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
{load}
for epoch in range(4):
    for batch in loader:
        pass
print(peak - idle)
"""
REBAR_LOADER = """
from rebar.loading import *
loader = Loader({path!r}, 64, 2, order=OrderOption.RANDOM, cropper=RandomResizedCrop(), resolution=224)
"""
FFCV_LOADER = """
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor
image = [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), ToTensor()]
pipelines = {{"image": image, "label": [IntDecoder(), ToTensor(), Squeeze()]}}
loader = Loader({path!r}, 64, 2, order=OrderOption.RANDOM, pipelines=pipelines)
"""


@pytest.mark.nightly
def test_loader_uses_a_tenth_of_ffcvs_memory(large_images: BetonFile) -> None:
    pytest.importorskip("ffcv")
    ours, ffcvs = (
        float(run_python(PEAK_MEMORY.format(load=load.format(path=str(large_images.path)))).stdout)
        for load in (REBAR_LOADER, FFCV_LOADER)
    )
    assert ours < ffcvs / 10, f"{ours:.0f} MB, FFCV {ffcvs:.0f} MB"
