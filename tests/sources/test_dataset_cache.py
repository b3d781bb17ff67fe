"""The cache of .beton files: written once, by one of several processes, and found again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rebar.beton import BetonFile, ImagePolicy
from rebar.beton.partial_file import Journal, journal_path, partial_path
from rebar.beton.verify import verify
from rebar.errors import RebarError
from rebar.sources import ImageFolder
from rebar.sources.dataset_cache import is_source, resolve_beton
from tests.conftest import REPOSITORY, fill, mounted_tmpfs

CALL = """
import sys
from rebar.sources.dataset_cache import resolve_beton
print("FILE", resolve_beton(sys.argv[1], "train"))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REBAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def betons(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*.beton"))


def start(tree: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CALL, str(tree)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


class TestOneProcess:
    def test_source_is_written_once(self, image_tree: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
        path = resolve_beton(str(image_tree), "train")
        assert path.parent == cache
        assert sorted(BetonFile.open(path).labels) == [0] * 8 + [1] * 8 + [2] * 8
        assert BetonFile.open(path).class_names == tuple(ImageFolder(image_tree).class_names)
        assert f"writing   {image_tree}" in capfd.readouterr().out
        before = path.stat().st_mtime_ns
        assert resolve_beton(str(image_tree), "train") == path
        assert capfd.readouterr().out == ""
        assert path.stat().st_mtime_ns == before

    def test_cache_on_a_full_disk(self, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with mounted_tmpfs(tmp_path / "disk", megabytes=40) as disk:
            monkeypatch.setenv("REBAR_CACHE", str(disk / "cache"))
            for room in (0, 4096, 1 << 20):
                filler = fill(disk)
                os.truncate(filler, filler.stat().st_size - room)
                with pytest.raises(RebarError) as error:
                    resolve_beton(str(image_tree), "train")
                assert error.value.code in ("disk-full", "dataset-cache-not-writable")
                assert not betons(disk / "cache")
                filler.unlink()
            assert verify(resolve_beton(str(image_tree), "train")).problems == []

    def test_unfinished_file_of_other_software_is_renamed(self, image_tree: Path, cache: Path) -> None:
        path = resolve_beton(str(image_tree), "train")
        for file in (path, *cache.glob(f"{path.name}.*")):
            file.unlink()
        with Journal(journal_path(path)) as journal:
            journal.resume({"software": "of last year"}, 0)
        for number in (1, 2):
            partial_path(path).write_bytes(bytes(100 + number))
            journal = journal_path(path).read_bytes()
            assert len(BetonFile.open(resolve_beton(str(image_tree), "train"))) == 24
            assert partial_path(path).with_name(f"{partial_path(path).name}.{number}").stat().st_size == 100 + number
            assert journal_path(path).with_name(f"{journal_path(path).name}.{number}").read_bytes() == journal
            for file in (path, *cache.glob(f"{path.name}.*")):
                file.unlink()
            journal_path(path).write_bytes(journal)

    def test_policy_and_split_are_part_of_the_key(self, image_tree: Path, cache: Path) -> None:
        full = resolve_beton(str(image_tree), "train")
        small = resolve_beton(str(image_tree), "train", policy=ImagePolicy(max_resolution=64))
        val = resolve_beton(str(image_tree), "val")
        assert len({full, small, val}) == 3 == len(betons(cache))
        assert BetonFile.open(small).widths.max() <= 64
        assert np.all(np.diff(BetonFile.open(val).labels) >= 0)

    def test_changed_source_is_written_again(self, cache: Path, image_tree: Path, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        image = next(image_tree.glob("*/*")).read_bytes()
        for name in ("a", "b"):
            (tree / name).mkdir(parents=True)
            (tree / name / "0.jpg").write_bytes(image)
        assert len(BetonFile.open(resolve_beton(str(tree), "train"))) == 2
        time.sleep(0.02)  # resolution of the file system's timestamps
        (tree / "b" / "1.jpg").write_bytes(image)
        assert len(BetonFile.open(resolve_beton(str(tree), "train"))) == 3

    def test_paths_of_beton_files_are_returned_unchanged(self, beton: BetonFile, cache: Path) -> None:
        for location in (str(beton.path), "absent.beton", "/absent/train.ffcv"):
            assert resolve_beton(location, "train") == Path(location)
        assert resolve_beton(str(beton.path.parent), "train") == beton.path
        assert not cache.exists()

    @pytest.mark.parametrize("location", ["hf:imagenet-1k", "s3://bucket/a", "a.tar", "shards/*.tar", "b.parquet"])
    def test_is_source_recognizes_sources_and_betons(self, location: str) -> None:
        assert is_source(location)

    def test_cache_folder_that_cannot_be_created(self, image_tree: Path, tmp_path: Path, monkeypatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("REBAR_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(RebarError, match="REBAR_CACHE") as raised:
            resolve_beton(str(image_tree), "train")
        assert raised.value.code == "dataset-cache-not-writable"


class TestManyProcesses:
    @pytest.fixture
    def large_tree(self, image_tree: Path, tmp_path: Path) -> Path:
        """Enough images for a few seconds of writing."""
        image = max(image_tree.glob("*/*"), key=lambda path: path.stat().st_size)
        folder = tmp_path / "large" / "n01"
        folder.mkdir(parents=True)
        for number in range(1000):
            (folder / f"{number}.jpg").hardlink_to(image)
        return folder.parent

    def wait_for_writing(self, cache: Path) -> None:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in cache.glob(".*.beton.*") if "lock" not in path.name):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_one_process_writes_and_the_others_wait(self, large_tree: Path, cache: Path) -> None:
        processes = [start(large_tree) for _ in range(3)]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], outputs
        (name,) = betons(cache)
        assert all(f"FILE {cache / name}\n" in output for output in outputs)
        assert sum("writing   " in output for output in outputs) == 1

    def test_waiting_process_resumes_after_the_writer_dies(self, large_tree: Path, cache: Path) -> None:
        writer = start(large_tree)
        self.wait_for_writing(cache)
        waiting = start(large_tree)
        assert waiting.stdout is not None
        assert waiting.stdout.readline().startswith("waiting   for the process that writes")
        os.kill(writer.pid, signal.SIGKILL)
        output, _ = waiting.communicate(timeout=120)
        assert waiting.returncode == 0, output
        assert "writing   " in output
        (name,) = betons(cache)
        assert len(BetonFile.open(cache / name)) == 1000
        writer.communicate(timeout=30)


def test_folder_of_one_class_is_refused_before_writing_is_announced(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "val/cat"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(b"image")
    with pytest.raises(RebarError) as raised:
        resolve_beton(str(folder), "val")
    assert raised.value.code == "labels-not-found"
    assert "writing" not in capsys.readouterr().out
    assert betons(cache) == []
