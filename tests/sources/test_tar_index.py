"""The index of many tars: parallel, and kept in the cache folder."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from rebar.errors import RebarError
from rebar.sources.tar import open_tar
from rebar.sources.tar_index import MIN_CACHED, MIN_PARALLEL, ByteRanges
from rebar.sources.webdataset import open_webdataset
from tests.conftest import fill, mounted_tmpfs
from tests.sources.conftest import add_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REBAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_shards(folder: Path, shards: int, samples: int, *, names: bool = False) -> list[Path]:
    """Write shards of samples with an empty image; sample k of shard n has class (k + n) % 10."""
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:03}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for key in range(samples):
                label = (key + shard) % 10
                add_file(tar, f"{key}.jpg", b"")
                add_file(tar, f"{key}.cls", (f"class {9 - label}" if names else str(label)).encode())
    return sorted(folder.iterdir())


def columns(source: ByteRanges) -> list[list[object]]:
    indices = range(len(source))
    return [
        [source.name(index) for index in indices],
        [source.class_names[source.label(index)] for index in indices],
        source.offsets.tolist(),
        source.sizes.tolist(),
    ]


@pytest.mark.parametrize("names", [False, True])
def test_worker_processes_give_the_same_index(names: bool, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", MIN_PARALLEL, 15, names=names)
    whole = open_webdataset(shards)
    parts = [columns(open_webdataset([shard])) for shard in shards]
    assert columns(whole) == [[value for part in parts for value in part[number]] for number in range(4)]
    assert len(whole.class_names) == 10


def test_error_in_a_worker_process_is_raised(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", MIN_PARALLEL, 2)
    shards[7].write_bytes(shards[7].read_bytes()[:700])
    with pytest.raises(RebarError, match=r"007\.tar") as raised:
        open_webdataset(shards)
    assert raised.value.code == "tar-invalid"


class TestCache:
    @pytest.fixture
    def shards(self, tmp_path: Path) -> list[Path]:
        return write_shards(tmp_path / "shards", 2, MIN_CACHED // 2)

    @pytest.mark.parametrize("folders", [("train/n0", "train/n1", "val/n0"), ("",)])
    def test_index_of_a_tar_of_images_is_read_from_the_cache(self, folders: tuple[str, ...], tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "images.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(MIN_CACHED * len(folders) // 2 if folders[0] else MIN_CACHED):
                add_file(tar, f"{folders[number % len(folders)]}/{number:05}.jpg".lstrip("/"), b"")
        labels = tmp_path / "val_labels.txt"
        labels.write_text("\n".join(f"{number:05}.jpg n0000000{number % 3}" for number in range(MIN_CACHED)))
        expected = columns(open_tar(tmp_path / "images.tar", "train"))
        self.hide(tmp_path / "images.tar", b"no longer a tar")
        assert columns(open_tar(tmp_path / "images.tar", "train")) == expected
        if not folders[0]:  # the list of labels is not part of what is kept
            labels.write_text(labels.read_text().replace("n00000000", "n00000007"))
            assert "n00000007" in open_tar(tmp_path / "images.tar", "train").class_names

    def hide(self, shard: Path, replacement: bytes) -> os.stat_result:
        """Change the name of the first file in a shard, and nothing that the operating system reports."""
        before = shard.stat()
        shard.write_bytes(replacement + shard.read_bytes()[len(replacement) :])
        os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
        return before

    def test_index_is_read_from_the_cache(self, shards: list[Path]) -> None:
        expected = open_webdataset(shards)
        self.hide(shards[0], b"no longer a tar")
        found = open_webdataset(shards)
        assert columns(found) == columns(expected)
        assert found.class_names == expected.class_names
        assert found.omitted == expected.omitted

    def test_index_of_a_changed_file_is_not_used(self, shards: list[Path]) -> None:
        open_webdataset(shards)
        before = self.hide(shards[0], b"no longer a tar")
        os.utime(shards[0], ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
        with pytest.raises(RebarError):
            open_webdataset(shards)

    def test_index_depends_on_the_image_key_and_the_order_of_files(self, shards: list[Path]) -> None:
        first = open_webdataset(shards)
        assert columns(open_webdataset(shards, "jpg")) == columns(first)
        with pytest.raises(RebarError) as raised:
            open_webdataset(shards, "png")
        assert raised.value.code == "source-empty"
        assert open_webdataset(shards[::-1]).name(0).startswith(str(shards[1]))

    def test_damaged_index_is_not_used(self, shards: list[Path], cache: Path) -> None:
        expected = columns(open_webdataset(shards))
        (path,) = cache.iterdir()
        for content in (path.read_bytes()[:-100], b"", path.read_bytes().replace(b"class_names", b"class_game_")):
            path.write_bytes(content)
            assert columns(open_webdataset(shards)) == expected

    def test_cache_that_cannot_be_written_warns(
        self, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("REBAR_CACHE", str(tmp_path / "file" / "cache"))
        assert len(open_webdataset(shards)) == MIN_CACHED
        assert "the index of the tars could not be cached" in capsys.readouterr().err

    def test_index_on_a_full_disk_warns(
        self, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with mounted_tmpfs(tmp_path / "disk", megabytes=1) as disk:
            monkeypatch.setenv("REBAR_CACHE", str(disk))
            filler = fill(disk)
            os.truncate(filler, filler.stat().st_size - 4096)  # room for a part of the index
            full = open_webdataset(shards)
            printed = capsys.readouterr().err
            assert "could not be cached" in printed
            assert "the disk is full" in printed
            assert [path.name for path in disk.iterdir()] == [filler.name]
            filler.unlink()
            assert columns(open_webdataset(shards)) == columns(full)
            assert len(list(disk.iterdir())) == 1

    def test_small_index_is_not_kept(self, tmp_path: Path, cache: Path) -> None:
        open_webdataset(write_shards(tmp_path / "small", 2, 3))
        assert not cache.exists()


def test_index_takes_less_than_100_bytes_per_sample(tmp_path: Path) -> None:
    source = open_webdataset(write_shards(tmp_path / "shards", 1, 1000))
    arrays = (source.labels, source.file_numbers, source.offsets, source.sizes, source.names.ends)
    assert all(isinstance(array, np.ndarray) for array in arrays)
    assert sum(array.nbytes for array in arrays) + len(source.names.content) < 100 * len(source)
