"""``data obtain`` over HTTP and BitTorrent, with the real aria2 on loopback."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rebar.aws.download_imagenet import DEVKIT, TRAIN, VAL
from rebar.storage.files import file_lock
from tests.aws.archives import (
    Web,
    leftovers,
    make_torrent,
    obtain,
)
from tests.aws.conftest import ARIA2, needs_aria2, run_cli, run_failing, start_cli, wait_for

MIB = 2**20


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
