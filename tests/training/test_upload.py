"""The thread that uploads, against a real server; and connections that fail."""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage import s3 as s3_module
from rebar.storage.run_manifest import Progress
from rebar.storage.s3 import AbsentError, BucketError, BucketFolder
from rebar.training.checkpoint import save_checkpoint, sha256_of
from rebar.training.distributed import World
from rebar.training.resume import begin
from rebar.training.upload import Uploader, start_uploads
from rebar.training.uploaded_run import fetch_run, place_of, read_manifest
from tests.training.s3_server import BUCKET, S3, SECRET, s3_server

ADDRESS = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run's folder with a first checkpoint; the run is named after the test."""
    name = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].partition(" ")[0]
    made = RunFolder(tmp_path / name)
    made.last_checkpoint.parent.mkdir(parents=True)
    made.config.write_text("training: {}\n")
    save(made, 1)
    return made


def save(folder: RunFolder, step: int) -> Progress:
    """What training does: a checkpoint, and lines in the log."""
    with folder.log.open("a") as log:
        log.write(f'{{"event": "step", "step": {step}}}\n')
    save_checkpoint(folder.last_checkpoint, {"step": torch.tensor(step), "weights": torch.full((1000,), float(step))})
    return Progress(step // 10, step, step / 10)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def uploader_of(folder: RunFolder, *, step: int = 1) -> Uploader:
    return start_uploads(ADDRESS, folder, Progress(0, step, step / 10), 10, replaces=False)


def test_every_checkpoint_follows_and_older_ones_go(s3: S3, folder: RunFolder) -> None:
    place, uploader = place_of(ADDRESS, folder), uploader_of(folder)
    name = folder.path.name
    for step in range(2, 6):
        uploader.checkpoint_saved(save(folder, step))
        eventually(lambda: (s3.names(name) and (read := read_manifest(place))) and read.progress.step == step)  # noqa: B023
    uploader.finish()
    manifest = read_manifest(place)
    assert manifest is not None
    assert manifest.progress == Progress(0, 5, 0.5)
    assert set(manifest.checkpoints) == {"last.pt", "previous.pt"}
    with folder.last_checkpoint.open("rb") as file:
        assert manifest.last.sha256 == sha256_of(file)
    stored = {f"/{stored.object}" for stored in manifest.checkpoints.values()}
    assert set(s3.names(name)) == stored | {"/config.yaml", "/log.jsonl", "/run.json"}
    assert s3.read(f"{name}/log.jsonl") == folder.log.read_bytes()


def test_saving_does_not_wait_and_the_newest_wins(s3: S3, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, put = threading.Event(), BucketFolder.put

    def put_slowly(self: BucketFolder, name: str, *rest: object, **named: object) -> None:
        slow.wait(20)
        put(self, name, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(BucketFolder, "put", put_slowly)
    uploader = uploader_of(folder)
    for step in range(2, 30):  # all of these while the first upload is under way
        uploader.checkpoint_saved(save(folder, step))
    assert s3.names(folder.path.name) == []
    slow.set()
    uploader.finish()
    manifest = read_manifest(place_of(ADDRESS, folder))
    assert manifest is not None
    assert manifest.progress.step == 29
    assert len([name for name in s3.names(folder.path.name) if name.endswith(".pt")]) <= 2


def test_what_fails_is_told_and_tried_again_at_the_end(
    s3: S3, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    uploader = uploader_of(folder)
    eventually(lambda: "/run.json" in s3.names(folder.path.name))
    for key in s3.names():  # the bucket is taken away for a while
        s3.client.delete_object(Bucket=BUCKET, Key=key)
    s3.client.delete_bucket(Bucket=BUCKET)
    uploader.checkpoint_saved(save(folder, 2))
    eventually(lambda: "S3 answers NoSuchBucket" in capsys.readouterr().err)
    s3.client.create_bucket(Bucket=BUCKET)
    uploader.finish()
    manifest = read_manifest(place_of(ADDRESS, folder))
    assert manifest is not None
    assert manifest.progress.step == 2


def test_an_upload_that_does_not_end_is_left(
    s3: S3, folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(BucketFolder, "put", lambda *_, **__: over.wait(30))
    uploader = uploader_of(folder)
    uploader.finish(at_most=0.05)
    uploader.finish()  # at once
    assert "takes more than 0.05 s and is left unfinished" in capsys.readouterr().err
    over.set()


def test_another_folder_gets_all_that_it_takes_to_go_on(
    s3: S3, folder: RunFolder, tmp_path: Path, world: World
) -> None:
    folder.wandb_id.write_text("abc")
    uploader = uploader_of(folder)
    os.link(folder.last_checkpoint, folder.last_checkpoint.with_name("best.pt"))
    best = folder.last_checkpoint.read_bytes()
    uploader.checkpoint_saved(save(folder, 2))
    uploader.finish()
    other = RunFolder(tmp_path / "elsewhere" / folder.path.name)
    fetch_run(ADDRESS, other, world, resume="auto", overwrite=False)
    assert other.last_checkpoint.read_bytes() == folder.last_checkpoint.read_bytes()
    assert other.last_checkpoint.with_name("best.pt").read_bytes() == best
    assert other.log.read_bytes() == folder.log.read_bytes()
    assert other.wandb_id.read_text() == "abc"
    assert not list(other.path.rglob("*.partial*"))


def test_killed_before_its_first_upload_a_run_still_replaces_the_earlier_one(
    s3: S3, folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader_of(folder, step=30).finish()  # the earlier run, further than the next
    other = RunFolder(tmp_path / "elsewhere" / folder.path.name)
    other.prepare(from_scratch=True)
    begin("none", other)
    with monkeypatch.context() as patch:
        patch.setattr(Uploader, "_upload", lambda *_: None)
        start_uploads(ADDRESS, other, Progress(0, 0, 0.0), 10, replaces=True).finish()
    save(other, 2)
    start_uploads(ADDRESS, other, Progress(0, 2, 0.2), 10, replaces=False).finish()
    manifest = read_manifest(place_of(ADDRESS, other))
    assert manifest is not None
    assert manifest.progress.step == 2
    assert list(manifest.checkpoints) == ["last.pt"]
    with pytest.raises(RebarError, match="is further than"):
        start_uploads(ADDRESS, folder, Progress(0, 0, 0.0), 10, replaces=False)


def test_a_new_run_finds_nothing(s3: S3, tmp_path: Path, world: World) -> None:
    fetch_run(ADDRESS, RunFolder(tmp_path / "new"), world, resume="auto", overwrite=False)
    assert not (tmp_path / "new").exists()


def test_a_manifest_of_something_else_is_refused(s3: S3, tmp_path: Path, world: World) -> None:
    s3.client.put_object(Bucket=BUCKET, Key="foreign/run.json", Body=b'{"format": "other"}')
    with pytest.raises(RebarError, match="damaged, or of another version"):
        fetch_run(ADDRESS, RunFolder(tmp_path / "foreign"), world, resume="auto", overwrite=False)


class _BreaksOff(BaseHTTPRequestHandler):
    """An object of twelve bytes; ``failures`` times it ends in the middle."""

    failures = 0

    def do_GET(self) -> None:
        content = sent = b"the contents"
        if type(self).failures > 0:
            type(self).failures -= 1
            sent = content[:5]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("failures", "whole"), [(2, True), (99, False)])
def test_a_connection_that_breaks_off(
    failures: int, whole: bool, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(_BreaksOff, "failures", failures)
    sha256 = hashlib.sha256(b"the contents").hexdigest()
    with ThreadingHTTPServer(("127.0.0.1", 0), _BreaksOff) as breaking:
        threading.Thread(target=breaking.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{breaking.server_port}")
        place, target = BucketFolder("s3://any/", "run"), tmp_path / "file"
        if whole:
            place.download("a", target, sha256=sha256)
            assert target.read_bytes() == b"the contents"
        else:
            with pytest.raises(BucketError, match="cannot be read"):
                place.download("a", target, sha256=sha256)
            assert list(tmp_path.iterdir()) == []
        breaking.shutdown()


def test_a_missing_object(s3: S3) -> None:
    with pytest.raises(AbsentError, match=r"s3://results/a/b\.json does not exist"):
        BucketFolder(ADDRESS, "a").get("b.json")


def test_an_address_with_keys_in_it_is_not_repeated() -> None:
    with pytest.raises(BucketError) as refused:
        BucketFolder(f"s3://AKIA:{SECRET}@bucket/", "run")
    assert SECRET not in str(refused.value)


def test_without_boto3_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(BucketError, match="pip install boto3"):
        BucketFolder(ADDRESS, "run")
