"""The dry run names the stage that limits the speed: each is slowed down in turn."""

import contextlib
import dataclasses
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import train_imagenet
from rebar.beton import ImagePolicy, write_beton
from rebar.sources import ImageFolder
from rebar.training.bottleneck import Speeds, main_resolution, measure
from rebar.training.build import build_run
from rebar.training.command_line import parse_command_line
from rebar.training.distributed import World
from rebar.training.trial import restore_afterwards
from tests.conftest import Data, mounted_tmpfs, train_here
from tests.processes import start, start_ranks

CORES = len(os.sched_getaffinity(0))
FAST, SLOW = "tests.training.throttled_models:fast", "tests.training.throttled_models:Slow"


def table_of(shown: str) -> dict[str, str]:
    """Return the last table of a dry run."""
    return dict(re.findall(r"^ *([\w ]+): (.+)$", shown.split("what limits the speed")[-1], flags=re.MULTILINE))


def rate(text: str) -> float:
    (number,) = re.findall(r"^([\d.,]+) images?/s", text)
    return float(number.replace(",", ""))


def test_dry_run_names_a_slow_step(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_here(*data.training_command(tmp_path / "run", "--dry-run", "--arch", SLOW))
    shown = capsys.readouterr().out
    assert len(re.findall(r"^ *images/s: ", shown, flags=re.MULTILINE)) == 1  # quickstart.sh reads this line
    table = table_of(shown)
    assert list(table) == ["disk", "decoding", "copy", "step", "together", "limited by", "what helps most"]
    assert table["limited by"].startswith("the training step; decoding is ")
    assert rate(table["together"]) <= 320  # 16 images in 0.05 s
    assert rate(table["step"]) <= 320 < rate(table["decoding"])
    if not torch.cuda.is_available():
        assert table["copy"] == "not measured: no GPU"
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Write betons with 16 images of 1600 x 1200 noise in two classes."""
    cv2 = pytest.importorskip("cv2")
    tree, folder = tmp_path_factory.mktemp("large") / "tree", tmp_path_factory.mktemp("large_betons")
    draw = np.random.default_rng(0)
    for number in range(16):
        path = tree / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw.integers(0, 256, (1200, 1600, 3), dtype=np.uint8))
    policy, order = ImagePolicy(max_resolution=None, keep_quality=True), np.arange(16)
    for split in ("train", "val"):
        path = folder / f"{split}.beton"
        write_beton(ImageFolder(tree), path, policy=policy, order=order, num_workers=1, progress=False)
    return Data(tree=tree, folder=folder)


def test_dry_run_names_slow_decoding(large_images: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--dry-run", "--arch", FAST, "--training.batch_size=8", "--validation.resolution=64"]
    train_here(*large_images.training_command(tmp_path / "run", *args, "--num-workers", "1"))
    table = table_of(capsys.readouterr().out)
    assert table["limited by"].startswith("decoding; ")
    smaller = "smaller images: write the data again with write_dataset.py --max-resolution"
    assert table["what helps most"].startswith(f"--data.num_workers {CORES} (now 1)" if CORES > 1 else smaller)
    train_here(*large_images.training_command(tmp_path / "run", *args, "--num-workers", str(CORES)))
    table = table_of(capsys.readouterr().out)
    assert table["limited by"].startswith("decoding; ")
    assert table["what helps most"].startswith(smaller)


@contextlib.contextmanager
def slow_disk(path: Path, *, bytes_per_second: int) -> Iterator[Path]:
    """Create a control group that reads this slowly from the disk of ``path``. Skips the test if not allowed."""
    is_version_1 = Path("/sys/fs/cgroup/blkio").exists()
    group = Path("/sys/fs/cgroup") / ("blkio" if is_version_1 else "") / f"rebar_slow_disk_{os.getpid()}"
    number = os.stat(path).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    if (device / "partition").exists():  # only whole disks can be limited
        device = device.parent
    try:
        disk = (device / "dev").read_text().strip()
        group.mkdir()
        if is_version_1:
            (group / "blkio.throttle.read_bps_device").write_text(f"{disk} {bytes_per_second}")
        else:
            (group / "io.max").write_text(f"{disk} rbps={bytes_per_second}")
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"limiting a disk is not allowed: {error}")
    try:
        yield group
    finally:
        for _ in range(100):  # until the kernel has removed the ended process
            with contextlib.suppress(OSError):
                group.rmdir()
            if not group.exists():
                break
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 2])
def test_dry_run_names_a_slow_disk(large_images: Data, tmp_path: Path, epochs: int) -> None:
    args = ["--dry-run", "--arch", FAST, "--training.batch_size=8", "--epochs", str(epochs), "--lr-peak-epoch", "0"]
    command = large_images.training_command(tmp_path / "run", *args)
    with slow_disk(large_images.train, bytes_per_second=10_000_000) as group:
        process = start(command)
        (group / "cgroup.procs").write_text(str(process.pid))
        assert process.wait() == 0, process.output
    table = table_of(process.output)
    assert rate(table["disk"]) < rate(table["decoding"])
    if epochs == 1:
        assert table["limited by"].startswith("the disk; ")
        assert table["what helps most"].startswith("smaller images: write the data again with write_dataset.py")
    else:  # the data fits in memory, so only the first epoch reads it
        assert table["limited by"].startswith("decoding; ")
        assert table["limited by"].endswith("; in the first epoch, the disk limits")


def test_dry_run_does_not_measure_a_disk_for_data_in_memory(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted_tmpfs(tmp_path / "memory", megabytes=200) as folder:
        subprocess.run(["cp", "-r", f"{data.folder}/.", str(folder)], check=True)
        copied = dataclasses.replace(data, folder=folder)
        train_here(*copied.training_command(tmp_path / "run", "--dry-run", "--arch", FAST))
        table = table_of(capsys.readouterr().out)
    assert table["disk"].startswith(f"not measured: {folder} is in memory")
    assert table["limited by"].split(";")[0] in {"decoding", "the training step", "the copy to the GPU"}


def test_dry_run_measures_all_ranks_at_once(data: Data, tmp_path: Path) -> None:
    args = ["--dry-run", "--arch", SLOW, "--training.batch_size", "8"]
    ranks = start_ranks(2, data.training_command(tmp_path / "run", *args))
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output
    table = table_of(ranks[0].output)
    assert "what limits the speed" not in ranks[1].output
    assert table["limited by"].startswith("the training step; decoding is ")
    assert rate(table["step"]) <= 320  # two ranks with 8 images in 0.05 s each


def test_measure_does_not_change_the_order_of_the_loader(data: Data, tmp_path: Path, world: World) -> None:
    command = [str(word) for word in data.training_command(tmp_path / "run", "--arch", "resnet20")[1:]]
    run = build_run(parse_command_line(command), world)
    before = run.train_loader.state_dict()
    indices = run.train_loader.indices
    with restore_afterwards(run):
        measure(run, train_imagenet.train_steps, 16, 0.01)
    assert run.train_loader.state_dict() == before
    assert run.train_loader.indices is indices


SPEEDS = Speeds(disk=None, in_file_order=None, decoding=3.0, copy=2.0, step=1.0, together=1.0, fits=True)


def test_compared_stages_are_sorted_and_measured() -> None:
    assert list(SPEEDS.compared(epochs=2)) == ["step", "copy", "decoding"]
    assert list(dataclasses.replace(SPEEDS, copy=None).compared(epochs=2)) == ["step", "decoding"]


def test_main_resolution_is_the_one_of_most_epochs() -> None:
    assert main_resolution([160, 160, 176, 192, 192, 192]) == 192
    assert main_resolution([160, 160, 192, 192]) == 192
    assert main_resolution([160, 160, 192]) == 160
