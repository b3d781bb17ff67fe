"""``data obtain``: HTTP and torrents with the real aria2 on loopback, Kaggle's command line, S3, and local folders."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from rebar.aws.download_imagenet import COMPETITION, DEVKIT, PUBLISHED_MD5, TRAIN, VAL
from rebar.storage.file_lock import file_lock
from tests.aws.archives import (
    NUM_TRAIN,
    NUM_VAL,
    Web,
    make_archives,
    make_kaggle_zip,
    make_torrent,
    serving,
    train_images,
    val_images,
)
from tests.aws.conftest import run_cli, run_failing, start_cli, wait_for
from tests.conftest import run

KEY = "0123456789abcdef0123456789abcdef"
ARIA2 = shutil.which("aria2c")
needs_aria2 = pytest.mark.skipif(ARIA2 is None, reason="aria2 is not installed")
MIB = 2**20


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    return make_archives(tmp_path / "archives")


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server, and an aria2 that does not look for peers beyond loopback."""
    monkeypatch.setattr("rebar.aws.download.RETRY_SECONDS", 0)
    settings = tmp_path / "config" / "aria2"
    settings.mkdir(parents=True)
    (settings / "aria2.conf").write_text(
        "enable-dht=false\nenable-dht6=false\nbt-enable-lpd=false\nenable-peer-exchange=false\n"
        "interface=127.0.0.1\nbt-max-peers=2\nbt-tracker-interval=1\n"
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving() as started:
        yield started


@pytest.fixture
def served(web: Web, archives: Path) -> Web:
    web.files |= {f"/{name}": (archives / name).read_bytes() for name in (TRAIN, VAL, DEVKIT)}
    return web


def obtain(archives: Path, web: Web, to: Path, *sources: str) -> list[str | Path]:
    return ["data", "obtain", *sources, "--to", to, "--md5", archives / "md5sums", "--devkit", f"{web.url}/{DEVKIT}"]


def written(place: str, split: str, folder: Path) -> str:
    """Write a .beton of a place; return the output of the command."""
    folder.mkdir(exist_ok=True)
    return run("write_dataset.py", "--split", split, "--data-dir", place, "--write-path", f"{folder}/").stdout


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "partial" in path.name or path.suffix in (".aria2", ".lock")]


# ------------------------------------------------------------------------------------------ HTTP


@needs_aria2
@pytest.mark.slow
def test_obtain_downloads_archives_that_are_written_without_unpacking(
    served: Web, archives: Path, tmp_path: Path
) -> None:
    to = tmp_path / "imagenet"
    done = run_cli(*obtain(archives, served, to, f"{served.url}/{TRAIN}", f"{served.url}/{VAL}"))
    assert done.out == f"{to}\n"
    assert f"{NUM_TRAIN} images" in written(str(to), "train", tmp_path / "betons")
    assert f"{NUM_VAL} images" in written(str(to), "val", tmp_path / "betons")
    run("-m", "rebar.sources.unpack", to, tmp_path / "tree")
    for split, images in (("train", train_images()), ("val", val_images())):
        for synset, name, content in images:
            assert (tmp_path / "tree" / split / synset / name).read_bytes() == content
    assert "6 images, 0 new" in run("-m", "rebar.sources.unpack", to, tmp_path / "tree").stdout


@needs_aria2
def test_obtain_neither_downloads_nor_reads_complete_files_again(served: Web, archives: Path, tmp_path: Path) -> None:
    words = obtain(archives, served, tmp_path / "to", f"{served.url}/{TRAIN}", f"{served.url}/{VAL}")
    run_cli(*words)
    served.requests.clear()
    assert "MD5" not in run_cli(*words).err
    assert served.requests == []
    assert leftovers(tmp_path / "to") == []


@needs_aria2
@pytest.mark.parametrize("is_changed", [False, True], ids=["same", "changed"])
def test_obtain_resumes_after_a_kill_unless_the_file_has_changed(is_changed: bool, web: Web, tmp_path: Path) -> None:
    web.files["/images.tar"] = content = os.urandom(8 * MIB)
    web.failures, web.bytes_before_failure, web.hold_open = 1, 5 * MIB, True
    partial = tmp_path / "to" / ".images.tar.partial"
    words = ["data", "obtain", f"{web.url}/images.tar", "--to", tmp_path / "to"]
    process = start_cli(*words)
    wait_for(lambda: partial.exists() and partial.stat().st_size == 5 * MIB, 60)
    received, control = time.time_ns(), partial.with_name(f"{partial.name}.aria2")
    wait_for(lambda: control.exists() and control.stat().st_mtime_ns > received, 60)  # aria2 saves its progress
    for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        each.kill()
    process.communicate()
    if is_changed:
        web.files["/images.tar"] = content = os.urandom(8 * MIB)
    run_cli(*words)
    assert web.requests[-1] == ("/images.tar", "" if is_changed else f"bytes={5 * MIB}-{8 * MIB - 1}")
    assert (tmp_path / "to/images.tar").read_bytes() == content
    assert leftovers(tmp_path / "to") == []


@needs_aria2
def test_obtain_on_a_small_disk_fails_before_the_download(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["/images.tar"] = bytes(MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=MIB - 1))
    assert "[disk-full]" in run_failing("data", "obtain", f"{web.url}/images.tar", "--to", tmp_path / "to")
    assert web.requests == []
    assert leftovers(tmp_path / "to") == []


@needs_aria2
def test_obtain_resumes_a_broken_connection(served: Web, archives: Path, tmp_path: Path) -> None:
    served.failures, served.bytes_before_failure = 2, 5000
    run_cli(*obtain(archives, served, tmp_path / "to", f"{served.url}/{TRAIN}"))
    assert (tmp_path / "to" / TRAIN).read_bytes() == (archives / TRAIN).read_bytes()
    assert leftovers(tmp_path / "to") == []


@needs_aria2
def test_obtain_refuses_a_file_with_a_wrong_md5(served: Web, archives: Path, tmp_path: Path) -> None:
    error = run_failing("data", "obtain", f"{served.url}/{TRAIN}", "--to", tmp_path / "to")
    assert PUBLISHED_MD5[TRAIN] in error
    assert "[md5-mismatch]" in error
    assert not (tmp_path / "to" / TRAIN).exists()
    assert leftovers(tmp_path / "to") == []
    with (archives / VAL).open("r+b") as file:
        file.write(b"damaged")
    assert "[md5-mismatch]" in run_failing(*obtain(archives, served, tmp_path / "to", str(archives)))
    assert (archives / VAL).exists()  # only downloads are deleted


@needs_aria2
@pytest.mark.parametrize("path", ["/nothing.tar?signature=0123456789", "/page.tar?signature=0123456789"])
def test_obtain_reports_failed_downloads_without_secrets(web: Web, tmp_path: Path, path: str) -> None:
    web.files["/page.tar"] = b"<html>sign in</html>"
    error = run_failing("data", "obtain", web.url + path, "--to", tmp_path / "to")
    assert "[download-failed]" in error
    assert "0123456789" not in error
    assert leftovers(tmp_path / "to") == []


def test_obtain_allows_one_process_per_folder(served: Web, tmp_path: Path) -> None:
    with file_lock(tmp_path / ".download.lock", ""):
        assert "[file-locked]" in run_failing("data", "obtain", f"{served.url}/{TRAIN}", "--to", tmp_path)


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("a.torrent", "apt-get install aria2"),
        ("http://a/b.tar", "apt-get install aria2"),
        ("kaggle", "pip install kaggle"),
    ],
)
def test_obtain_without_its_program_names_the_install_command(
    source: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("a.torrent").touch()
    error = run_failing("data", "obtain", source, "--to", tmp_path / "to")
    assert advice in error
    assert "[program-missing]" in error


# ------------------------------------------------------------------------------------------ Kaggle

RECORDER = """#!{python}
import os, pathlib, shutil, sys
pathlib.Path({log!r}).write_text("\\n".join(sys.argv[1:]))
if os.environ.get("KAGGLE_KEY") is None:
    sys.exit("401 - Unauthorized")
shutil.copyfile({archive!r}, pathlib.Path(sys.argv[-1], {name!r}))
"""


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``kaggle`` on the PATH that records its arguments and copies this archive."""
    archive = make_kaggle_zip(tmp_path / "made.zip")
    program = tmp_path / "bin" / "kaggle"
    program.parent.mkdir()
    name = f"{COMPETITION}.zip"
    log = str(tmp_path / "arguments")
    program.write_text(RECORDER.format(python=sys.executable, log=log, archive=str(archive), name=name))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    return archive


def test_obtain_kaggle_extracts_a_tree_that_is_written(kaggle: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    done = run_cli("data", "obtain", "kaggle", "--to", to)
    assert done.out == f"{to}\n"
    words = ["competitions", "download", "--competition", COMPETITION, "--path", str(to)]
    assert (tmp_path / "arguments").read_text().split("\n") == words
    assert not (to / "ILSVRC/Annotations").exists()
    for synset, name, content in train_images():
        assert (to / "ILSVRC/Data/CLS-LOC/train" / synset / name).read_bytes() == content
    assert f"{NUM_VAL} images" in written(str(to), "val", tmp_path / "betons")


def test_obtain_kaggle_finishes_an_interrupted_extraction(kaggle: Path, tmp_path: Path) -> None:
    run_cli("data", "obtain", "kaggle", "--to", tmp_path / "to")
    images = sorted((tmp_path / "to/ILSVRC").rglob("*.JPEG"))
    content = images[0].read_bytes()
    images[0].write_bytes(content[:100])
    images[1].unlink()
    kept = images[2].stat().st_mtime_ns
    run_cli("data", "obtain", "kaggle", "--to", tmp_path / "to")
    assert images[0].read_bytes() == content
    assert images[1].exists()
    assert images[2].stat().st_mtime_ns == kept


def test_obtain_kaggle_detects_a_damaged_zip(kaggle: Path, tmp_path: Path) -> None:
    content = bytearray(kaggle.read_bytes())
    content[200] ^= 255
    kaggle.write_bytes(bytes(content))
    assert "[archive-damaged]" in run_failing("data", "obtain", "kaggle", "--to", tmp_path / "to")


def test_obtain_kaggle_without_credentials(kaggle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    error = run_failing("data", "obtain", "kaggle", "--to", tmp_path / "to")
    assert "accept the rules" in error
    assert "[download-failed]" in error


# ------------------------------------------------------------------------------------------ torrents


@pytest.fixture
def swarm(served: Web, archives: Path, tmp_path: Path) -> Iterator[Web]:
    """A tracker, and an aria2 that seeds the archives."""
    torrents = []
    for name in (TRAIN, VAL):
        torrent, info_hash = make_torrent(archives / name, f"{served.url}/announce")
        (tmp_path / f"{name}.torrent").write_bytes(torrent)
        served.files[f"/{info_hash}.torrent"] = torrent
        torrents.append(str(tmp_path / f"{name}.torrent"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [f"--dir={archives}", "--check-integrity=true", "--seed-ratio=0.0", f"--listen-port={port}"]
    process = subprocess.Popen([str(ARIA2), *options, *torrents], stdout=subprocess.DEVNULL)
    wait_for(lambda: ("127.0.0.1", port) in served.peers, 20)
    yield served
    process.terminate()
    process.wait(timeout=20)


@needs_aria2
@pytest.mark.slow
def test_obtain_downloads_a_magnet_link(swarm: Web, archives: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    _, info_hash = make_torrent(archives / VAL, f"{swarm.url}/announce")
    words = obtain(archives, swarm, to, f"magnet:?xt=urn:btih:{info_hash}&tr={swarm.url}/announce")
    run_cli(*words)
    assert (to / VAL).read_bytes() == (archives / VAL).read_bytes()
    assert (to / DEVKIT).is_file()
    written_at = (to / VAL).stat().st_mtime_ns
    run_cli(*words)  # checks the pieces, downloads none
    assert (to / VAL).stat().st_mtime_ns == written_at


@needs_aria2
@pytest.mark.slow
def test_obtain_completes_a_partial_torrent_by_its_info_hash(
    swarm: Web, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rebar.aws.download.ACADEMIC_TORRENTS", f"{swarm.url}/")
    _, info_hash = make_torrent(archives / TRAIN, f"{swarm.url}/announce")
    to = tmp_path / "to"
    to.mkdir()
    (to / TRAIN).write_bytes((archives / TRAIN).read_bytes()[:20000])
    run_cli(*obtain(archives, swarm, to, info_hash.upper()))
    assert (to / TRAIN).read_bytes() == (archives / TRAIN).read_bytes()


@needs_aria2
def test_obtain_accepts_the_complete_files_of_a_torrent(web: Web, archives: Path, tmp_path: Path) -> None:
    torrent, _ = make_torrent(archives, f"{web.url}/announce")
    (tmp_path / "a.torrent").write_bytes(torrent)
    shutil.copytree(archives, tmp_path / "to" / "archives")
    run_cli("data", "obtain", str(tmp_path / "a.torrent"), "--to", tmp_path / "to")


@needs_aria2
def test_obtain_refuses_an_invalid_torrent(web: Web, tmp_path: Path) -> None:
    (tmp_path / "a.torrent").write_text("nonsense")
    assert "[download-failed]" in run_failing("data", "obtain", str(tmp_path / "a.torrent"), "--to", tmp_path / "to")
    for source in (str(tmp_path / "b.torrent"), "magnet:?dn=name"):
        assert "[download-not-found]" in run_failing("data", "obtain", source, "--to", tmp_path / "to")


@needs_aria2
def test_obtain_writes_no_file_outside_the_folder(web: Web, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/file").write_bytes(b"content")
    torrent, _ = make_torrent(tmp_path / "evil", f"{web.url}/announce")
    (tmp_path / "a.torrent").write_bytes(torrent.replace(b"4:evil", b"7:../evil"))
    shutil.rmtree(tmp_path / "evil")
    assert "[download-failed]" in run_failing("data", "obtain", str(tmp_path / "a.torrent"), "--to", tmp_path / "to")
    assert not (tmp_path / "evil").exists()


# ------------------------------------------------------------------------------------------ other sources


def test_obtain_downloads_archives_from_s3_and_leaves_a_tree_in_place(
    s3: Any, archives: Path, web: Web, tmp_path: Path
) -> None:
    s3.put_object(Bucket="bucket", Key="tree/train/n01440764/a.JPEG", Body=b"image")
    for name in (TRAIN, VAL, DEVKIT):
        s3.upload_file(str(archives / name), "bucket", f"originals/{name}")
    to = tmp_path / "to"
    assert run_cli(*obtain(archives, web, to, "s3://bucket/originals")).out == f"{to}\n"
    assert (to / VAL).read_bytes() == (archives / VAL).read_bytes()
    (to / VAL).write_bytes(b"another version")
    assert "[md5-mismatch]" in run_failing(*obtain(archives, web, to, "s3://bucket/originals"))
    assert (to / VAL).read_bytes() == b"another version"  # an existing file is never replaced
    assert run_cli("data", "obtain", "s3://bucket/tree", "--to", to).out == "s3://bucket/tree\n"


def test_obtain_prints_sources_that_are_read_in_place(tmp_path: Path) -> None:
    assert run_cli("data", "obtain", "hf:imagenet-1k", "--to", tmp_path / "to").out == "hf:imagenet-1k\n"
    assert run_cli("data", "obtain", str(tmp_path), "--to", tmp_path / "to").out == f"{tmp_path}\n"
    assert not (tmp_path / "to").exists()
    error = run_failing("data", "obtain", str(tmp_path / "nothing"), "--to", tmp_path / "to")
    assert "[imagenet-source-unknown]" in error


def test_obtain_refuses_an_invalid_md5_list(tmp_path: Path) -> None:
    (tmp_path / "sums").write_text("nonsense\n")
    error = run_failing("data", "obtain", "hf:imagenet-1k", "--to", tmp_path, "--md5", tmp_path / "sums")
    assert "[md5-list-invalid]" in error
