"""Long runs: nothing grows, memory is used again, nobody waits in vain."""

import os
import resource
import subprocess
import sys
import threading
import time
from itertools import islice, pairwise
from pathlib import Path

import psutil
import pytest
import torch

from rebar.beton import BetonFile
from rebar.loading import Batch, CenterCrop, Loader, OrderOption, RandomResizedCrop

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


def test_200_epochs_leave_nothing_behind(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    process = psutil.Process()

    def usage() -> tuple[int, int, int]:
        for epoch in range(100):
            batches = loader.epoch(epoch, 16 + 16 * (epoch % 3))
            for _ in islice(batches, 3 if epoch % 4 == 0 else None):  # some are left early
                pass
            del batches
        return process.memory_info().rss, process.num_fds(), threading.active_count()

    memory, files, threads = usage()
    later_memory, later_files, later_threads = usage()
    assert later_memory - memory < 8 << 20
    assert (later_files, later_threads) == (files, threads)


def test_memory_is_used_again_from_epoch_to_epoch(numbers: BetonFile) -> None:
    loader = make_loader(numbers, resolution=128)
    places = [{batch.images.data_ptr() for batch in loader} for _ in range(5)]
    assert len(set.union(*places)) <= loader.batches_ahead + 3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in loader:
        pass
    bytes_an_epoch = len(numbers) * 128 * 128 * 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < bytes_an_epoch / 4096 / 4


def test_batches_that_are_held_are_never_overwritten(numbers: BetonFile) -> None:
    """Held as tensors, as parts of them, as arrays; over epochs."""
    loader = make_loader(numbers)
    held, copies = [], []
    for _ in range(3):
        for number, batch in enumerate(loader):
            holder = (batch.images, batch.images[1:3].permute(0, 3, 1, 2), batch.images.numpy()[:, ::2])[number % 3]
            held.append(torch.as_tensor(holder))
            copies.append(held[-1].clone())
            del batch, holder
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


@pytest.mark.parametrize("num_workers", [1, 64])
def test_two_loaders_in_turn_with_any_number_of_threads(num_workers: int, numbers: BetonFile) -> None:
    alone = [batch.images.clone() for batch in make_loader(numbers)]
    first, second = (make_loader(numbers, num_workers=num_workers) for _ in range(2))
    for expected, a, b in zip(alone, first, second, strict=True):
        assert torch.equal(a.images, expected)
        assert torch.equal(b.images, expected)


def test_two_loaders_in_two_threads(numbers: BetonFile) -> None:
    results: dict[int, list[Batch]] = {}

    def go_through(number: int) -> None:
        results[number] = [Batch(images.clone(), labels) for images, labels in make_loader(numbers)]

    threads = [threading.Thread(target=go_through, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(torch.equal(a.images, b.images) for a, b in zip(results[0], results[1], strict=True))


def test_a_slow_consumer_finds_only_so_many_batches_made(numbers: BetonFile) -> None:
    made = 0
    crops = CenterCrop.crops

    class Counting(CenterCrop):
        def crops(self, *arguments: object) -> object:  # type: ignore[override]
            nonlocal made
            made += 1
            return crops(self, *arguments)  # type: ignore[arg-type]

    loader = Loader(numbers.path, 8, 1, cropper=Counting(), resolution=8, batches_ahead=2)
    batches = iter(loader)
    counts = []
    for _ in range(4):
        next(batches)
        time.sleep(0.1)
        counts.append(made)
    assert counts[0] <= 3
    assert all(after - before == 1 for before, after in pairwise(counts))


def run_python(code: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_process_ends_though_an_epoch_was_left_in_the_middle(numbers: BetonFile) -> None:
    done = run_python(
        "from rebar.loading import *\n"
        f"loader = Loader({str(numbers.path)!r}, 8, 4, cropper=RandomResizedCrop(), resolution=32)\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
        "print('left')\n"
    )
    assert (done.stdout, done.returncode) == ("left\n", 0), done.stderr


def test_our_own_path_does_not_import_ffcv(textures: BetonFile) -> None:
    done = run_python(
        "import sys\n"
        "from rebar.loading import *\n"
        f"for batch in Loader({str(textures.path)!r}, 4, 2, cropper=RandomResizedCrop(), resolution=32): pass\n"
        "print(sorted({'ffcv', 'torchvision'} & set(sys.modules)))\n"
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_the_second_process_has_its_first_batch_at_once(textures: BetonFile) -> None:
    """The first one may have to compile; the other loads what it left on the disk, without a compiler."""
    code = (
        "import sys\n"
        "from rebar.loading import *\n"
        f"next(iter(Loader({str(textures.path)!r}, 4, 2, cropper=RandomResizedCrop(), resolution=32)))\n"
        "print(sorted({'numba', 'llvmlite'} & set(sys.modules)))\n"
    )
    run_python(code)
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


PEAK_MEMORY = """
import threading, time, torch

def own():  # what is no file's (man 5 proc, smaps), MB
    fields = (line.split() for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return sum(int(kb) for name, kb, *_ in fields if name in ("Pss_Anon:", "Pss_Shmem:")) / 1000

idle = peak = own()

def watch():
    global peak
    while True:
        peak = max(peak, own())
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
{load}
for epoch in range(4):
    for batch in loader:
        pass
print(peak - idle)
"""
OURS = """
from rebar.loading import *
loader = Loader({path!r}, 64, 2, order=OrderOption.RANDOM, cropper=RandomResizedCrop(), resolution=224)
"""
FFCVS = """
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor
image = [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), ToTensor()]
pipelines = {{"image": image, "label": [IntDecoder(), ToTensor(), Squeeze()]}}
loader = Loader({path!r}, 64, 2, order=OrderOption.RANDOM, pipelines=pipelines)
"""


@pytest.mark.slow
def test_it_takes_a_tenth_of_the_memory_that_ffcv_takes(large_images: BetonFile) -> None:
    ours, ffcvs = (
        float(run_python(PEAK_MEMORY.format(load=load.format(path=str(large_images.path)))).stdout)
        for load in (OURS, FFCVS)
    )
    print(f"{ours:.0f} MB, FFCV {ffcvs:.0f} MB")
    assert ours < ffcvs / 10
