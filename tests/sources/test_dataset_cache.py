"""A source in place of a .beton: written once, found again, by one process of many, whatever dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rebar.beton import BetonFile, ImagePolicy
from rebar.beton.partial_file import append_record, journal_path, partial_path
from rebar.errors import RebarError
from rebar.sources import ImageFolder
from rebar.sources.dataset_cache import beton_of, is_source

ROOT = Path(__file__).parents[2]
CALL = "from rebar.sources.dataset_cache import beton_of; import sys; print('FILE', beton_of(sys.argv[1], 'train'))"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REBAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def betons(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*.beton"))


def start(tree: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CALL, str(tree)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


class TestOneProcess:
    def test_written_once(self, image_tree: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
        path = beton_of(str(image_tree), "train")
        assert path.parent == cache
        assert sorted(BetonFile.open(path).labels) == [0] * 8 + [1] * 8 + [2] * 8
        assert BetonFile.open(path).class_names == tuple(ImageFolder(image_tree).class_names)
        assert f"writing   {image_tree}" in capfd.readouterr().out
        before = path.stat().st_mtime_ns
        assert beton_of(str(image_tree), "train") == path
        assert capfd.readouterr().out == ""
        assert path.stat().st_mtime_ns == before

    def test_what_other_software_left_unfinished_is_thrown_away(self, image_tree: Path, cache: Path) -> None:
        path = beton_of(str(image_tree), "train")
        for file in (path, *cache.glob(f"{path.name}.*")):
            file.unlink()
        with journal_path(path).open("wb") as journal:
            append_record(journal, b'{"software": "of last year"}')
        partial_path(path).write_bytes(bytes(100))
        assert len(BetonFile.open(beton_of(str(image_tree), "train"))) == 24

    def test_whatever_changes_the_file_gives_another(self, image_tree: Path, cache: Path) -> None:
        whole = beton_of(str(image_tree), "train")
        small = beton_of(str(image_tree), "train", policy=ImagePolicy(max_resolution=64))
        val = beton_of(str(image_tree), "val")
        assert len({whole, small, val}) == 3 == len(betons(cache))
        assert BetonFile.open(small).widths.max() <= 64
        assert np.all(np.diff(BetonFile.open(val).labels) >= 0)

    def test_a_source_that_changed_is_written_anew(self, cache: Path, image_tree: Path, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        image = next(image_tree.glob("*/*")).read_bytes()
        for name in ("a", "b"):
            (tree / name).mkdir(parents=True)
            (tree / name / "0.jpg").write_bytes(image)
        assert len(BetonFile.open(beton_of(str(tree), "train"))) == 2
        time.sleep(0.02)  # the clock of the file system
        (tree / "b" / "1.jpg").write_bytes(image)
        assert len(BetonFile.open(beton_of(str(tree), "train"))) == 3

    def test_files_are_taken_as_they_are(self, beton: BetonFile, cache: Path) -> None:
        for where in (str(beton.path), "absent.beton", "/absent/train.ffcv"):
            assert beton_of(where, "train") == Path(where)
        assert beton_of(str(beton.path.parent), "train") == beton.path
        assert not cache.exists()

    @pytest.mark.parametrize("where", ["hf:imagenet-1k", "s3://bucket/a", "a.tar", "shards/*.tar", "b.parquet"])
    def test_what_is_a_source(self, where: str) -> None:
        assert is_source(where)

    def test_a_cache_that_cannot_be_made(self, image_tree: Path, tmp_path: Path, monkeypatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("REBAR_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(RebarError, match="set REBAR_CACHE to another folder"):
            beton_of(str(image_tree), "train")


class TestManyProcesses:
    @pytest.fixture
    def large_tree(self, image_tree: Path, tmp_path: Path) -> Path:
        """Enough images that writing takes a few seconds."""
        image = max(image_tree.glob("*/*"), key=lambda path: path.stat().st_size)
        folder = tmp_path / "large" / "n01"
        folder.mkdir(parents=True)
        for number in range(2500):
            (folder / f"{number}.jpg").hardlink_to(image)
        return folder.parent

    def wait_for_writing(self, cache: Path) -> None:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in cache.glob(".*.beton.*") if "lock" not in path.name):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_one_writes_and_the_others_wait(self, large_tree: Path, cache: Path) -> None:
        processes = [start(large_tree) for _ in range(3)]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], outputs
        (name,) = betons(cache)
        assert all(f"FILE {cache / name}\n" in output for output in outputs)
        assert sum("writing   " in output for output in outputs) == 1

    def test_where_the_writer_dies_another_takes_its_place(self, large_tree: Path, cache: Path) -> None:
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
        assert len(BetonFile.open(cache / name)) == 2500
        writer.communicate(timeout=30)
