"""write_dataset.py as people run it: a command, its output, its files."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import cv2
import numpy as np
import psutil
import pytest

from rebar.beton import BetonFile
from rebar.sources.registry import KINDS
from write_dataset import WriterSection, find_target

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ of three classes; every image is of one grey, its own."""
    root = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", 10), ("val", 3)):
        for number in range(3 * count):
            folder = root / split / f"n{number // count}"
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{number}.JPEG"), np.full((60, 80, 3), 5 * number, np.uint8))
    return root


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "write_dataset.py"), *map(str, arguments)]


def environment(**extra: object) -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if key not in ("IMAGENET_DIR", "WRITE_DIR")}
    return {**ours, **{key: str(value) for key, value in extra.items()}}


def run(*arguments: object, **extra: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=environment(**extra), capture_output=True, text=True, timeout=300)


def error_of(*arguments: object, **extra: object) -> str:
    """The one line that a run which must fail prints."""
    done = run(*arguments, **extra)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line


def test_both_splits_from_the_environment_alone(imagenet: Path, tmp_path: Path) -> None:
    greys = {}
    for split, count in (("train", 30), ("val", 9)):
        done = run("--split", split, IMAGENET_DIR=imagenet, WRITE_DIR=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"{count} of {count} in 3 classes" in done.stdout
        assert re.search(r"[\d.,]+ images/s", done.stdout)
        assert "next      python" in done.stdout
        file = BetonFile.open(tmp_path / f"{split}.beton")
        assert len(file) == count
        assert file.class_names == ("n0", "n1", "n2")
        pixels = [cv2.imdecode(file.image_bytes(index), cv2.IMREAD_COLOR)[0, 0, 0] for index in range(count)]
        greys[split] = np.rint(np.array(pixels) / 5).astype(int)
        assert np.array_equal(greys[split] // (count // 3), file.labels)
    assert np.array_equal(greys["val"], np.arange(9))
    assert not np.array_equal(greys["train"], np.arange(30))
    assert sorted(greys["train"]) == list(range(30))
    assert "train_imagenet.py" in done.stdout


def test_options_reach_the_file(imagenet: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.beton"
    options = ("--write-mode", "raw", "--max-resolution", "32", "--subset", "7", "--cfg.seed=4", "--num-workers", 1)
    done = run("--split=train", "--data-dir", imagenet / "train", "--write-path", target, *options)
    assert done.returncode == 0, done.stderr
    file = BetonFile.open(target)
    assert len(file) == 7
    assert set(zip(file.heights, file.widths, file.modes, strict=True)) == {(24, 32, 1)}
    assert json.loads((tmp_path / "small.beton.json").read_text())["seed"] == 4


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python looks into the current folder first")
def test_another_package_of_the_name_is_not_mistaken_for_it(imagenet: Path, tmp_path: Path) -> None:
    (tmp_path / "rebar").mkdir()
    (tmp_path / "rebar" / "__init__.py").write_text(f"open({str(tmp_path / 'was_imported')!r}, 'w')\n")
    words = ("--split", "val", "--data-dir", imagenet, "--write-path", tmp_path / "a.beton", "--num-workers", 1)
    done = subprocess.run(command(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "was_imported").exists()


def test_jpegs_without_the_compiler_are_refused_in_words(imagenet: Path, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('broken')\n")
    words = ("--split", "val", "--data-dir", imagenet, "--write-path", tmp_path / "a.beton")
    done = run(*words, PYTHONPATH=tmp_path, NUMBA_CACHE_DIR=tmp_path / "empty")
    assert done.returncode == 1
    assert "error: the JPEG kernels cannot be compiled here" in done.stderr
    done = run(*words, "--write-mode", "raw", PYTHONPATH=tmp_path, NUMBA_CACHE_DIR=tmp_path / "empty")
    assert done.returncode == 0, done.stderr


def test_shards_are_the_whole_in_its_order(imagenet: Path, tmp_path: Path) -> None:
    common = ("--split", "train", "--data-dir", imagenet, "--write-path", tmp_path, "--subset", 29, "--seed", 2)
    assert run(*common).returncode == 0
    whole = BetonFile.open(tmp_path / "train.beton")
    parts = []
    for part in range(3):
        assert run(*common, "--shard", f"{part}/3").returncode == 0
        parts.append(BetonFile.open(tmp_path / f"train-0000{part}-of-00003.beton"))
    assert [len(part) for part in parts] == [9, 10, 10]
    assert {part.class_names for part in parts} == {whole.class_names}
    assert np.array_equal(np.concatenate([part.labels for part in parts]), whole.labels)
    images = [part.image_bytes(index).tobytes() for part in parts for index in range(len(part))]
    assert images == [whole.image_bytes(index).tobytes() for index in range(29)]
    assert "--shard 3/3: expected I/N" in error_of(*common, "--shard", "3/3")


def test_parts_of_the_classes_agree_between_the_splits(imagenet: Path, tmp_path: Path) -> None:
    names = []
    for split in ("train", "val"):
        options = ("--max-classes", 2, "--max-samples-per-class", 2, "--seed", 3)
        done = run("--split", split, *options, IMAGENET_DIR=imagenet, WRITE_DIR=tmp_path)
        assert done.returncode == 0, done.stderr
        file = BetonFile.open(tmp_path / f"{split}.beton")
        assert np.bincount(file.labels).tolist() == [2, 2]
        names.append(file.class_names)
    assert names[0] == names[1]


def test_every_kind_of_source_can_be_chosen() -> None:
    choices = get_args(get_type_hints(WriterSection)["dataset"])
    assert set(choices) == {"auto", "imagenet", *(kind.name for kind in KINDS)}


def test_an_existing_file_is_replaced_only_when_asked(imagenet: Path, tmp_path: Path) -> None:
    (tmp_path / "val.beton").write_bytes(b"precious")
    arguments = ("--split", "val", "--data-dir", imagenet, "--write-path", tmp_path)
    assert "exists already; add --overwrite" in error_of(*arguments)
    assert (tmp_path / "val.beton").read_bytes() == b"precious"
    assert run(*arguments, "--overwrite").returncode == 0
    assert len(BetonFile.open(tmp_path / "val.beton")) == 9


def test_what_is_missing_is_named_with_both_ways_to_give_it(imagenet: Path, tmp_path: Path) -> None:
    assert "--data-dir PATH, or set the environment variable IMAGENET_DIR" in error_of("--split", "val")
    assert "WRITE_DIR" in error_of("--split", "val", IMAGENET_DIR=imagenet)
    assert "--split" in error_of(IMAGENET_DIR=imagenet, WRITE_DIR=tmp_path)


def test_mistakes_are_told_in_one_line(imagenet: Path, tmp_path: Path) -> None:
    given = {"IMAGENET_DIR": imagenet, "WRITE_DIR": tmp_path}
    assert "did you mean" in error_of("--split", "val", "--jpg-quality", "80", **given)
    assert "1 to 100" in error_of("--split", "val", "--jpeg-quality", "101", **given)
    assert "does not fit the 9 images" in error_of("--split", "val", "--subset", "10", **given)
    assert "no such folder or file" in error_of("--split", "val", "--data-dir", tmp_path / "absent", **given)
    assert "mkdir -p" in error_of("--split", "val", "--write-path", tmp_path / "absent" / "a.beton", **given)
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_image_is_named(imagenet: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    out = tmp_path / "out"
    out.mkdir()
    assert "a/broken.jpg: cannot be decoded" in error_of(
        "--split", "val", "--data-dir", tmp_path / "images", "--write-path", out
    )
    assert list(out.iterdir()) == []


def test_validation_must_have_the_classes_of_training(imagenet: Path, tmp_path: Path) -> None:
    assert run("--split", "train", IMAGENET_DIR=imagenet, WRITE_DIR=tmp_path).returncode == 0
    other = tmp_path / "other" / "n9"
    other.mkdir(parents=True)
    cv2.imwrite(str(other / "a.png"), np.zeros((8, 8, 3), np.uint8))
    message = error_of("--split", "val", "--data-dir", other.parent, "--write-path", tmp_path)
    assert "(differing: n0, n1, n2, n9), so labels would not mean the same" in message


def processes_of_session(session: int) -> list[psutil.Process]:
    """What still runs of a session; ended processes that nobody has waited for do not count."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_ctrl_c_leaves_no_process_and_what_can_be_gone_on_with(imagenet: Path, tmp_path: Path) -> None:
    """As a terminal does it: the signal goes to every process of the group at once."""
    images = tmp_path / "images"
    (images / "a").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    cv2.imwrite(str(images / "a" / "0.png"), noise)
    for number in range(1, 3000):
        (images / "a" / f"{number}.png").hardlink_to(images / "a" / "0.png")
    out = tmp_path / "out"
    out.mkdir()
    arguments = ("--split", "train", "--data-dir", images, "--write-path", out, "--chunk-size", 5)
    process = subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while sum(path.stat().st_size for path in out.iterdir()) < 20_000_000:  # a whole page behind the tables, and more
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)  # ends only when no process holds the pipe any more
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "the same command goes on from there" in stderr
    assert {path.name for path in out.iterdir()} == {".train.beton.partial", ".train.beton.journal"}
    deadline = time.monotonic() + 5
    while left := processes_of_session(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("write_path", "expected"),
    [("{}", "{}/val.beton"), ("{}/", "{}/val.beton"), ("{}/a.beton", "{}/a.beton"), ("{}/a.b", "{}/a.b")],
)
def test_find_target(write_path: str, expected: str, tmp_path: Path) -> None:
    assert find_target(write_path.format(tmp_path), "val") == Path(expected.format(tmp_path))
