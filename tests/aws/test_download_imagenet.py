"""``data obtain``: from a web server, Kaggle's interface, torrents and S3 on loopback to what the writer reads."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rebar.aws.archives import DEVKIT, PUBLISHED_MD5, TRAIN, VAL
from rebar.aws.kaggle import ARCHIVE, COMPETITION
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
from tests.aws.strict_aws import StrictAws
from tests.conftest import run

DOWNLOAD = f"/api/v1/competitions/data/download-all/{COMPETITION}"
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    return make_archives(tmp_path / "archives")


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr("rebar.aws.download.RETRY_SECONDS", 0.0)
    with serving() as started:
        yield started


@pytest.fixture
def served(web: Web, archives: Path) -> Web:
    web.files |= {f"/{name}": (archives / name).read_bytes() for name in (TRAIN, VAL, DEVKIT)}
    return web


def obtain(archives: Path, web: Web, to: Path, *sources: str) -> list[str | Path]:
    return ["data", "obtain", *sources, "--to", to, "--md5", archives / "md5sums", "--devkit", f"{web.url}/{DEVKIT}"]


def written(place: str, split: str, folder: Path) -> str:
    """What the writer says of it."""
    folder.mkdir(exist_ok=True)
    return run("write_dataset.py", "--split", split, "--data-dir", place, "--write-path", f"{folder}/").stdout


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*partial*")]


# ------------------------------------------------------------------------------------------ the web


@pytest.mark.slow
def test_archives_of_a_web_server_are_written_without_unpacking(served: Web, archives: Path, tmp_path: Path) -> None:
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


def test_again_nothing_is_fetched_nor_read(served: Web, archives: Path, tmp_path: Path) -> None:
    words = obtain(archives, served, tmp_path / "to", f"{served.url}/{TRAIN}", f"{served.url}/{VAL}")
    run_cli(*words)
    served.asked.clear()
    assert "MD5" not in run_cli(*words).err
    assert served.asked == []


def test_an_answer_that_breaks_off_is_gone_on_with(served: Web, archives: Path, tmp_path: Path) -> None:
    served.break_off, served.break_after = 2, 5000
    run_cli(*obtain(archives, served, tmp_path / "to", f"{served.url}/{TRAIN}"))
    assert [asked for _, asked in served.asked] == ["", "bytes=5000-", "bytes=10000-"]
    assert (tmp_path / "to" / TRAIN).read_bytes() == (archives / TRAIN).read_bytes()
    assert leftovers(tmp_path / "to") == []


def test_killed_it_goes_on_where_it_was(web: Web, tmp_path: Path) -> None:
    web.files["/images.tar"] = content = os.urandom(8 * 2**20)
    web.break_off, web.break_after, web.hold_open = 1, 5 * 2**20, True
    partial = tmp_path / ".images.tar.partial"
    words = ["data", "obtain", f"{web.url}/images.tar", "--to", tmp_path]
    process = start_cli(*words)
    wait_for(lambda: partial.exists() and partial.stat().st_size == 5 * 2**20, 60)
    process.kill()
    process.communicate()
    run_cli(*words)
    assert [asked for _, asked in web.asked] == ["", f"bytes={5 * 2**20}-"]
    assert (tmp_path / "images.tar").read_bytes() == content
    assert leftovers(tmp_path) == []


def test_a_file_with_another_md5_is_refused(served: Web, archives: Path, tmp_path: Path) -> None:
    told = run_failing("data", "obtain", f"{served.url}/{TRAIN}", "--to", tmp_path / "to")
    assert f"not {PUBLISHED_MD5[TRAIN]}: it is fetched anew" in told
    assert not (tmp_path / "to" / TRAIN).exists()
    assert leftovers(tmp_path / "to") == []
    with (archives / VAL).open("r+b") as file:
        file.write(b"damaged")
    assert "it is damaged or another file" in run_failing(*obtain(archives, served, tmp_path / "to", str(archives)))


def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(web: Web, tmp_path: Path) -> None:
    web.files["/images.tar"] = os.urandom(20000)
    web.break_off, web.break_after = 100, 7000
    web.statuses_after = {1: 404}
    run_failing("data", "obtain", f"{web.url}/images.tar", "--to", tmp_path)
    assert (tmp_path / ".images.tar.partial").stat().st_size == 7000
    web.files["/images.tar"] = content = os.urandom(20000)
    web.break_off, web.statuses_after = 0, {}
    run_cli("data", "obtain", f"{web.url}/images.tar", "--to", tmp_path)
    assert (tmp_path / "images.tar").read_bytes() == content


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nothing.tar?signature=0123456789", "/nothing.tar: the server answered 404"),
        ("/page.tar", "answered with a page, not a file"),
    ],
)
def test_what_cannot_be_fetched_is_told_without_secrets(web: Web, tmp_path: Path, path: str, message: str) -> None:
    web.files["/page.tar"], web.content_type = b"<html>sign in</html>", "text/html; charset=utf-8"
    told = run_failing("data", "obtain", web.url + path, "--to", tmp_path)
    assert message in told
    assert "0123456789" not in told


def test_too_little_space_is_told_before(served: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    assert "0.0 GiB free" in run_failing("data", "obtain", f"{served.url}/{TRAIN}", "--to", tmp_path)
    assert not any(path.stat().st_size for path in tmp_path.glob(f".{TRAIN}.partial"))


def test_a_server_that_stops_answering_is_given_up(served: Web, tmp_path: Path) -> None:
    served.break_off, served.break_after = 1000, 0
    told = run_failing("data", "obtain", f"{served.url}/{TRAIN}", "--to", tmp_path)
    assert "cannot be fetched" in told
    assert "it goes on" in told


def test_only_one_fetches_at_a_time(served: Web, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / ".obtaining").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another process is fetching" in run_failing("data", "obtain", f"{served.url}/{TRAIN}", "--to", tmp_path)


# ------------------------------------------------------------------------------------------ Kaggle


@pytest.fixture
def kaggle(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Web:
    """Kaggle's interface, which leads to a store that wants no credentials, only a signature."""
    web.files["/store/archive.zip"] = make_kaggle_zip(tmp_path / "made.zip").read_bytes()
    web.redirects[DOWNLOAD] = f"{web.url}/store/archive.zip?X-Goog-Signature=5ec2e7"
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_ENDPOINT", web.url)
    monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    return web


def test_kaggles_archive_becomes_a_tree_that_is_written(kaggle: Web, tmp_path: Path) -> None:
    to = tmp_path / "to"
    kaggle.break_off, kaggle.break_after = 1, 3000
    done = run_cli("data", "obtain", "kaggle", "--to", to)
    assert done.out == f"{to}\n"
    assert KEY not in done.err
    assert "5ec2e7" not in done.err
    to_kaggle, to_store = kaggle.headers[0], kaggle.headers[1]
    assert to_kaggle["Authorization"].startswith("Basic ")
    assert "Authorization" not in to_store
    assert [path.partition("?")[0] for path, _ in kaggle.asked] == [DOWNLOAD, "/store/archive.zip"] * 2
    assert not (to / "ILSVRC/Annotations").exists()
    for synset, name, content in train_images():
        assert (to / "ILSVRC/Data/CLS-LOC/train" / synset / name).read_bytes() == content
    assert f"{NUM_VAL} images" in written(str(to), "val", tmp_path / "betons")
    kaggle.asked.clear()
    run_cli("data", "obtain", "kaggle", "--to", to)
    assert kaggle.asked == []


def test_a_token_and_a_file_of_credentials_serve_too(
    kaggle: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", KEY)
    run_cli("data", "obtain", "kaggle", "--to", tmp_path / "one")
    assert kaggle.headers[0]["Authorization"] == f"Bearer {KEY}"
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    assert "set KAGGLE_USERNAME and KAGGLE_KEY" in run_failing("data", "obtain", "kaggle", "--to", tmp_path / "two")
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": "somebody", "key": KEY}))
    run_cli("data", "obtain", "kaggle", "--to", tmp_path / "two")


@pytest.mark.parametrize(("status", "message"), [(401, "does not accept the credentials"), (403, "accept the rules")])
def test_what_kaggle_refuses_is_told(kaggle: Web, tmp_path: Path, status: int, message: str) -> None:
    kaggle.statuses[DOWNLOAD] = status
    told = run_failing("data", "obtain", "kaggle", "--to", tmp_path / "to")
    assert message in told
    assert KEY not in told


def test_credentials_are_not_sent_unencrypted(kaggle: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_ENDPOINT", "http://example.com")
    assert "must begin with https://" in run_failing("data", "obtain", "kaggle", "--to", tmp_path / "to")


def test_a_damaged_zip_is_told_and_an_interrupted_one_finished(kaggle: Web, tmp_path: Path) -> None:
    to = tmp_path / "to"
    content = bytearray(kaggle.files["/store/archive.zip"])
    content[200] ^= 255
    kaggle.files["/store/archive.zip"] = bytes(content)
    assert "is damaged" in run_failing("data", "obtain", "kaggle", "--to", to)
    (to / ARCHIVE).write_bytes((tmp_path / "made.zip").read_bytes())
    images = sorted((to / "ILSVRC").rglob("*.JPEG"))
    if images:
        images[0].write_bytes(b"cut")
    run_cli("data", "obtain", "kaggle", "--to", to)
    for synset, name, image in train_images():
        assert (to / "ILSVRC/Data/CLS-LOC/train" / synset / name).read_bytes() == image


# ------------------------------------------------------------------------------------------ torrents

ARIA2 = shutil.which("aria2c")
needs_aria2 = pytest.mark.skipif(ARIA2 is None, reason="aria2 is not installed")


@pytest.fixture
def swarm(served: Web, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A tracker, and an aria2 that has the archives; nobody looks beyond loopback."""
    settings = tmp_path / "config" / "aria2"
    settings.mkdir(parents=True)
    (settings / "aria2.conf").write_text(
        "enable-dht=false\nenable-dht6=false\nbt-enable-lpd=false\nenable-peer-exchange=false\n"
        "interface=127.0.0.1\nbt-max-peers=2\nbt-tracker-interval=1\n"
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    torrents = []
    for name in (TRAIN, VAL):
        torrent, info_hash = make_torrent(archives / name, f"{served.url}/announce")
        (tmp_path / f"{name}.torrent").write_bytes(torrent)
        served.files[f"/{info_hash}.torrent"] = torrent
        torrents.append(str(tmp_path / f"{name}.torrent"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            str(ARIA2),
            "--dir",
            archives,
            "--check-integrity=true",
            "--seed-ratio=0.0",
            f"--listen-port={port}",
            *torrents,
        ],
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: ("127.0.0.1", port) in served.peers, 20)
    yield served
    process.terminate()
    process.wait(timeout=20)


@needs_aria2
@pytest.mark.slow
def test_a_magnet_link_brings_its_file(swarm: Web, archives: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    _, info_hash = make_torrent(archives / VAL, f"{swarm.url}/announce")
    words = obtain(archives, swarm, to, f"magnet:?xt=urn:btih:{info_hash}&tr={swarm.url}/announce")
    run_cli(*words)
    assert (to / VAL).read_bytes() == (archives / VAL).read_bytes()
    assert (to / DEVKIT).is_file()
    swarm.asked.clear()
    run_cli(*words)  # neither peers nor hashes are needed any more
    assert swarm.asked == []


@needs_aria2
@pytest.mark.slow
def test_a_hash_of_academic_torrents_goes_on_with_what_a_kill_left(
    swarm: Web, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rebar.aws.torrents.ACADEMIC", f"{swarm.url}/")
    _, info_hash = make_torrent(archives / TRAIN, f"{swarm.url}/announce")
    to = tmp_path / "to"
    to.mkdir()
    (to / TRAIN).write_bytes((archives / TRAIN).read_bytes()[:20000])
    run_cli(*obtain(archives, swarm, to, info_hash.upper()))
    assert (to / TRAIN).read_bytes() == (archives / TRAIN).read_bytes()


@needs_aria2
def test_a_torrent_of_a_folder_is_not_whole_before_aria2_says_so(
    web: Web, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torrent, _ = make_torrent(archives, f"{web.url}/announce")
    (tmp_path / "a.torrent").write_bytes(torrent)
    to = tmp_path / "to"
    shutil.copytree(archives, to / "archives")
    words = ["data", "obtain", str(tmp_path / "a.torrent"), "--to", to]
    assert "there" in run_cli(*words).err  # nobody is asked for anything
    assert web.asked == []
    monkeypatch.setattr("rebar.aws.torrents._aria2", lambda *_: None)
    (to / "archives.aria2").touch()  # a sparse file may have its size long before its contents
    assert "is not whole: run the command again" in run_failing(*words)


@needs_aria2
def test_what_is_no_torrent_is_told(web: Web, tmp_path: Path) -> None:
    (tmp_path / "a.torrent").write_text("nonsense")
    assert "is no torrent" in run_failing("data", "obtain", str(tmp_path / "a.torrent"), "--to", tmp_path / "to")
    assert "no such file" in run_failing("data", "obtain", str(tmp_path / "b.torrent"), "--to", tmp_path / "to")
    assert "xt=urn:btih" in run_failing("data", "obtain", "magnet:?dn=name", "--to", tmp_path / "to")


def test_without_aria2_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install aria2 (apt-get install aria2)" in run_failing(
        "data", "obtain", "a.torrent", "--to", tmp_path / "to"
    )


# ------------------------------------------------------------------------------------------ the rest


def test_archives_in_s3_are_fetched_and_a_tree_stays_there(
    aws: StrictAws, archives: Path, web: Web, tmp_path: Path
) -> None:
    import boto3

    s3: Any = boto3.client("s3")
    s3.create_bucket(Bucket="bucket")
    s3.put_object(Bucket="bucket", Key="tree/train/n01440764/a.JPEG", Body=b"image")
    for name in (TRAIN, VAL, DEVKIT):
        s3.upload_file(str(archives / name), "bucket", f"originals/{name}")
    to = tmp_path / "to"
    assert run_cli(*obtain(archives, web, to, "s3://bucket/originals")).out == f"{to}\n"
    assert (to / VAL).read_bytes() == (archives / VAL).read_bytes()
    assert run_cli("data", "obtain", "s3://bucket/tree", "--to", to).out == "s3://bucket/tree\n"


def test_what_needs_no_fetching_is_named(tmp_path: Path) -> None:
    assert run_cli("data", "obtain", "hf:imagenet-1k", "--to", tmp_path / "to").out == "hf:imagenet-1k\n"
    assert run_cli("data", "obtain", str(tmp_path), "--to", tmp_path / "to").out == f"{tmp_path}\n"
    assert not (tmp_path / "to").exists()
    told = run_failing("data", "obtain", str(tmp_path / "nothing"), "--to", tmp_path / "to")
    assert "no such folder; ImageNet is taken from" in told
    assert "kaggle" in told


def test_a_list_that_is_none_of_md5sums_is_told(tmp_path: Path) -> None:
    (tmp_path / "sums").write_text("nonsense\n")
    told = run_failing("data", "obtain", "hf:imagenet-1k", "--to", tmp_path, "--md5", tmp_path / "sums")
    assert "line 1 is none of md5sum's" in told
