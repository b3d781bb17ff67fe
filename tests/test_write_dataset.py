"""write_dataset.py: command line, output and files."""

import contextlib
import json
import os
import re
import shlex
import shutil
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
from rebar.errors import RebarError
from rebar.sources.registry import KINDS
from tests.conftest import REPOSITORY
from write_dataset import WriterSection, find_target, main


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with three classes; every image has its own gray level."""
    root = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", 10), ("val", 3)):
        for number in range(3 * count):
            folder = root / split / f"n{number // count}"
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{number}.JPEG"), np.full((60, 80, 3), 5 * number, np.uint8))
    return root


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMAGENET_DIR", "WRITE_DIR"):
        monkeypatch.delenv(name, raising=False)


def write(*arguments: object) -> None:
    main(list(map(str, arguments)))


def error_of(*arguments: object) -> RebarError:
    with pytest.raises(RebarError) as raised:
        write(*arguments)
    return raised.value


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / "write_dataset.py"), *map(str, arguments)]


def run(*arguments: object, cwd: Path | None = None, **environment: object) -> "subprocess.CompletedProcess[str]":
    variables = {**os.environ, **{key: str(value) for key, value in environment.items()}}
    return subprocess.run(command(*arguments), cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)


def test_both_splits_from_environment_variables(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMAGENET_DIR", str(imagenet))
    monkeypatch.setenv("WRITE_DIR", str(tmp_path))
    levels = {}
    for split, count, next_script in (("train", 30, "write_dataset.py"), ("val", 9, "train_imagenet.py")):
        write("--split", split)
        printed = capsys.readouterr().out
        assert f"{count} of {count} in 3 classes" in printed
        assert re.search(r"[\d.,]+ images/s", printed)
        assert f"next      python {next_script}" in printed
        file = BetonFile.open(tmp_path / f"{split}.beton")
        assert len(file) == count
        assert file.class_names == ("n0", "n1", "n2")
        pixels = [cv2.imdecode(file.image_bytes(index), cv2.IMREAD_COLOR)[0, 0, 0] for index in range(count)]
        levels[split] = np.rint(np.array(pixels) / 5).astype(int)
        assert np.array_equal(levels[split] // (count // 3), file.labels)
    assert np.array_equal(levels["val"], np.arange(9))
    assert not np.array_equal(levels["train"], np.arange(30))
    assert sorted(levels["train"]) == list(range(30))


def test_printed_next_command_writes_the_other_split(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "all images", tmp_path / "be tons"
    source.symlink_to(imagenet)
    target.mkdir()
    options = ("--dataset", "folder", "--max-classes", 2, "--seed", 5)
    write("--split", "train", "--data-dir", source, "--write-path", target, *options)
    script, *arguments = shlex.split(capsys.readouterr().out.split("next      python ")[1])
    assert script == "write_dataset.py"
    write(*arguments)
    train, val = (BetonFile.open(target / f"{split}.beton") for split in ("train", "val"))
    assert val.class_names == train.class_names
    assert len(val) == 6


def test_write_dataset_applies_its_options(imagenet: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.beton"
    options = ("--write-mode", "raw", "--max-resolution", "32", "--subset", "7", "--cfg.seed=4", "--num-workers", 1)
    write("--split=train", "--data-dir", imagenet / "train", "--write-path", target, *options)
    file = BetonFile.open(target)
    assert len(file) == 7
    assert set(zip(file.heights, file.widths, file.modes, strict=True)) == {(24, 32, 1)}
    assert json.loads((tmp_path / "small.beton.json").read_text())["seed"] == 4


@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH requires Python 3.11")
def test_package_of_the_same_name_in_the_current_folder_is_not_imported(imagenet: Path, tmp_path: Path) -> None:
    (tmp_path / "rebar").mkdir()
    (tmp_path / "rebar" / "__init__.py").write_text(f"open({str(tmp_path / 'was_imported')!r}, 'w')\n")
    target = tmp_path / "a.beton"
    done = run("--split", "val", "--data-dir", imagenet, "--write-path", target, "--num-workers", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "was_imported").exists()


def test_write_dataset_without_kernels_writes_raw_only(imagenet: Path, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('broken')\n")
    args = ("--split", "val", "--data-dir", imagenet, "--write-path", tmp_path / "a.beton")
    done = run(*args, PYTHONPATH=tmp_path, NUMBA_CACHE_DIR=tmp_path / "empty")
    assert done.returncode == 1
    assert "[jpeg-kernels-not-compiled]" in done.stderr
    done = run(*args, "--write-mode", "raw", PYTHONPATH=tmp_path, NUMBA_CACHE_DIR=tmp_path / "empty")
    assert done.returncode == 0, done.stderr


def test_concatenated_shards_equal_the_full_file(imagenet: Path, tmp_path: Path) -> None:
    common = ("--split", "train", "--data-dir", imagenet, "--write-path", tmp_path, "--subset", 29, "--seed", 2)
    write(*common)
    full = BetonFile.open(tmp_path / "train.beton")
    shards = []
    for number in range(3):
        write(*common, "--shard", f"{number}/3")
        shards.append(BetonFile.open(tmp_path / f"train-0000{number}-of-00003.beton"))
    assert [len(shard) for shard in shards] == [9, 10, 10]
    assert {shard.class_names for shard in shards} == {full.class_names}
    assert np.array_equal(np.concatenate([shard.labels for shard in shards]), full.labels)
    images = [shard.image_bytes(index).tobytes() for shard in shards for index in range(len(shard))]
    assert images == [full.image_bytes(index).tobytes() for index in range(29)]


def test_class_subsets_of_both_splits_agree(imagenet: Path, tmp_path: Path) -> None:
    names = []
    for split in ("train", "val"):
        options = ("--max-classes", 2, "--max-samples-per-class", 2, "--seed", 3)
        write("--split", split, "--data-dir", imagenet, "--write-path", tmp_path, *options)
        file = BetonFile.open(tmp_path / f"{split}.beton")
        assert np.bincount(file.labels).tolist() == [2, 2]
        names.append(file.class_names)
    assert names[0] == names[1]


def test_dataset_option_has_every_kind_of_source() -> None:
    choices = get_args(get_type_hints(WriterSection)["dataset"])
    assert set(choices) == {"auto", "imagenet", *(kind.name for kind in KINDS)}


def test_existing_file_is_replaced_only_with_overwrite(imagenet: Path, tmp_path: Path) -> None:
    (tmp_path / "val.beton").write_bytes(b"precious")
    arguments = ("--split", "val", "--data-dir", imagenet, "--write-path", tmp_path)
    error = error_of(*arguments)
    assert error.code == "write-target-exists"
    assert "--overwrite" in str(error)
    assert (tmp_path / "val.beton").read_bytes() == b"precious"
    write(*arguments, "--overwrite")
    assert len(BetonFile.open(tmp_path / "val.beton")) == 9


def test_error_of_a_missing_path_names_option_and_variable(imagenet: Path) -> None:
    for arguments, option, variable, code in (
        (("--split", "val"), "--data-dir", "IMAGENET_DIR", "data-not-given"),
        (("--split", "val", "--data-dir", imagenet), "--write-path", "WRITE_DIR", "write-path-missing"),
    ):
        error = error_of(*arguments)
        assert error.code == code
        assert option in str(error)
        assert variable in str(error)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--subset", "10"], "selection-too-large"),
        (["--subset", "ten", "--max-classes", "2", "--data-dir", "absent"], "subset-invalid"),
        (["--write-path", "/proc/a.beton", "--data-dir", "absent"], "file-not-writable"),
        (["--shard", "3/3"], "shard-invalid"),
        (["--data-dir", "absent"], "source-not-found"),
        (["--write-path", "absent/a.beton"], "write-target-invalid"),
    ],
)
def test_write_dataset_raises_for_invalid_values(
    options: list[str], code: str, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGENET_DIR", str(imagenet))
    monkeypatch.setenv("WRITE_DIR", str(tmp_path))
    assert error_of("--split", "val", *options).code == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "val", "--jpg-quality", "80"], "jpeg"),
        (["--split", "val", "--jpeg-quality", "101"], "100"),
        ([], "--split"),
    ],
)
def test_write_dataset_raises_for_unknown_or_missing_options(arguments: list[str], message: str) -> None:
    assert message in str(error_of(*arguments))


def test_val_must_have_the_classes_of_train(imagenet: Path, tmp_path: Path) -> None:
    write("--split", "train", "--data-dir", imagenet, "--write-path", tmp_path)
    other = tmp_path / "other" / "n9"
    other.mkdir(parents=True)
    cv2.imwrite(str(other / "a.png"), np.zeros((8, 8, 3), np.uint8))
    error = error_of("--split", "val", "--data-dir", other.parent, "--write-path", tmp_path)
    assert error.code == "beton-classes-differ"
    assert "n0, n1, n2, n9" in str(error)


def test_train_with_other_classes_than_val_warns(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("--split", "val", "--data-dir", imagenet, "--write-path", tmp_path)
    assert "differ" not in capsys.readouterr().err
    write("--split", "train", "--data-dir", imagenet, "--write-path", tmp_path, "--max-classes", 2)
    assert "classes differ from the 3" in capsys.readouterr().err


def test_counts_are_pluralized(imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("--split", "val", "--data-dir", imagenet, "--write-path", tmp_path, "--max-classes", 1, "--num-workers", 1)
    printed = capsys.readouterr().out
    assert "1 class (" in printed
    assert "1 worker process\n" in printed


def test_hidden_files_are_printed_and_in_the_report(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(imagenet / "val", tmp_path / "val")
    (tmp_path / "val" / "n0" / "._0.JPEG").write_bytes(b"macOS")
    write("--split", "val", "--data-dir", tmp_path, "--write-path", tmp_path)
    assert "1 x hidden file or folder" in capsys.readouterr().out
    report = json.loads((tmp_path / "val.beton.report.json").read_text())
    assert report["omitted"] == {"hidden file or folder": 1}


def processes_of_session(session: int) -> list[psutil.Process]:
    """Return the running processes of a session, without zombies."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_all_processes_and_keeps_the_written_pages(ending: signal.Signals, tmp_path: Path) -> None:
    """Signals every process of the group at once, as a terminal does."""
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
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while sum(path.stat().st_size for path in out.iterdir()) < 20_000_000:  # the tables and more than a page
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, ending)
    _, stderr = process.communicate(timeout=20)  # returns once all processes have exited
    assert process.returncode == 128 + ending
    assert "Traceback" not in stderr
    assert str(out / ".train.beton.partial") in stderr
    assert "the same command resumes" in stderr
    assert {path.name for path in out.iterdir()} == {".train.beton.partial", ".train.beton.journal"}
    deadline = time.monotonic() + 5
    while remaining := processes_of_session(process.pid):
        assert time.monotonic() < deadline, remaining
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("write_path", "expected"),
    [("{}", "{}/val.beton"), ("{}/", "{}/val.beton"), ("{}/a.beton", "{}/a.beton"), ("{}/a.b", "{}/a.b")],
)
def test_find_target(write_path: str, expected: str, tmp_path: Path) -> None:
    assert find_target(write_path.format(tmp_path), "val") == Path(expected.format(tmp_path))
