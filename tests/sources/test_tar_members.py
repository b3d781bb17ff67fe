"""The reader of tar headers, compared with ``tarfile``."""

import bz2
import gzip
import lzma
import subprocess
import tarfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from rebar.errors import RebarError
from rebar.sources.tar_members import Member, list_members
from tests.sources.conftest import add_file

LONG = "folder/" * 30 + "0.jpg"


def listed_by_tarfile(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as tar:
        return [(entry.name, entry.offset_data, entry.size) for entry in tar if entry.isreg()]


def listed(path: Path) -> list[tuple[str, int, int]]:
    return [member[:3] for member in list_members(path)]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_equal_tarfiles(format: int, tmp_path: Path) -> None:
    names = ["0.jpg", "a/b/1.jpg", "folder/" * 20 + "2.jpg", "é/3.jpg", "empty.txt"]
    if format != tarfile.USTAR_FORMAT:
        names.append(LONG)
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        for number, name in enumerate(names):
            add_file(tar, name, b"" if name == "empty.txt" else b"x" * 700 * number + b"end")
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert listed(tmp_path / "a.tar") == listed_by_tarfile(tmp_path / "a.tar")
    assert len(listed(tmp_path / "a.tar")) == len(names)


def test_times_with_fractions_are_extended_headers(tmp_path: Path) -> None:
    """WebDataset's own writer stores them for every file."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(3):
            entry = tarfile.TarInfo(f"{number}.jpg")
            entry.mtime = 1.5  # type: ignore[assignment]
            tar.addfile(entry)
    assert listed(tmp_path / "a.tar") == listed_by_tarfile(tmp_path / "a.tar")


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=pax"], ["--format=v7"], ["--label=volume"]])
def test_members_equal_tarfiles_for_gnu_tar(options: list[str], tmp_path: Path) -> None:
    for name in ("0.jpg", "a/1.jpg", "b/c/2.jpg", *([] if "--format=v7" in options else [LONG])):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 100)
    subprocess.run(["tar", "cf", "out.tar", *options, "./0.jpg", "a", "b"], cwd=tmp_path, check=True)
    expected = [(name.removeprefix("./"), *rest) for name, *rest in listed_by_tarfile(tmp_path / "out.tar")]
    assert listed(tmp_path / "out.tar") == expected
    assert expected


def test_large_size_in_base_256_is_read(tmp_path: Path) -> None:
    size = 9 << 30
    entry = tarfile.TarInfo("large.jpg")
    entry.size = size
    path = tmp_path / "a.tar"
    with path.open("wb") as file:  # a file with holes
        file.write(entry.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + size + 1024)
    assert listed(path) == [("large.jpg", 512, size)]


def test_inner_tar_has_offsets_in_the_outer_file(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "inner.tar", "w") as tar:
        add_file(tar, "0.jpg", b"content")
    with tarfile.open(tmp_path / "outer.tar", "w") as tar:
        add_file(tar, "first.txt", b"x" * 600)
        tar.add(tmp_path / "inner.tar", "inner.tar")
    inner = next(member for member in list_members(tmp_path / "outer.tar") if member.name == "inner.tar")
    (member,) = list_members(tmp_path / "outer.tar", inner)
    assert (tmp_path / "outer.tar").read_bytes()[member.offset :][: member.size] == b"content"


def test_links_are_counted(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(b"image")
    (tmp_path / "1.jpg").hardlink_to(tmp_path / "0.jpg")
    (tmp_path / "2.jpg").symlink_to("0.jpg")
    subprocess.run(["tar", "cf", "out.tar", "0.jpg", "1.jpg", "2.jpg"], cwd=tmp_path, check=True)
    omitted: Counter[str] = Counter()
    assert [member.name for member in list_members(tmp_path / "out.tar", omitted=omitted)] == ["0.jpg"]
    assert omitted == {"link in a tar": 2}


def damage(content: bytes, kind: str) -> bytes:
    if kind == "no end":
        return content[:1536]
    if kind == "in a header":
        return content[:1100]
    if kind == "checksum":
        return content.replace(b"1.jpg", b"7.jpg")
    if kind == "negative size":  # the reader would never end
        header = tarfile.TarInfo("0.jpg").tobuf(tarfile.USTAR_FORMAT)
        header = header[:124] + b"-0000001000\0" + header[136:148] + b" " * 8 + header[156:]
        return header[:148] + b"%06o\0 " % sum(header) + header[156:] + content
    return kind.encode()


@pytest.mark.parametrize("kind", ["no end", "in a header", "checksum", "negative size", "", "no tar at all" * 100])
def test_list_members_refuses_a_damaged_tar(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(2):
            add_file(tar, f"{number}.jpg", b"content")
    path.write_bytes(damage(path.read_bytes(), kind))
    with pytest.raises(RebarError) as raised:
        list(list_members(path))
    assert raised.value.code == "tar-invalid"


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_compressed_file_named_tar_is_refused(module: ModuleType, tmp_path: Path) -> None:
    plain = tmp_path / "plain.tar"
    with tarfile.open(plain, "w") as tar:
        add_file(tar, "0.jpg", b"content")
    path = tmp_path / "a.tar"
    path.write_bytes(module.compress(plain.read_bytes()))
    inner = tmp_path / "outer.tar"
    with tarfile.open(inner, "w") as tar:
        tar.add(path, "n0.tar")
    for arguments in ((path,), (inner, next(list_members(inner)))):
        with pytest.raises(RebarError) as raised:
            list(list_members(*arguments))
        assert raised.value.code == "tar-compressed"


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RebarError) as raised:
        list(list_members(tmp_path))
    assert raised.value.code == "source-not-found"


def test_sparse_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "0.jpg").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    for format in ("gnu", "pax"):
        command = ["tar", "cf", "out.tar", "--sparse", f"--format={format}", "0.jpg"]
        subprocess.run(command, cwd=tmp_path, check=True)
        with pytest.raises(RebarError) as raised:
            list(list_members(tmp_path / "out.tar"))
        assert raised.value.code == "tar-invalid"


def test_list_members_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RebarError) as raised:
        list(list_members(tmp_path / "absent.tar"))
    assert raised.value.code == "source-unreadable"


def test_small_contents_are_read_with_their_headers(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add_file(tar, "0.cls", b"17")
        add_file(tar, "0.jpg", b"x" * 5000)
    members: list[Member] = list(list_members(tmp_path / "a.tar"))
    assert [member.content for member in members] == [b"17", None]
