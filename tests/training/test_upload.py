"""The upload thread and fetch_run, against a moto server."""

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO

import pytest
import torch

from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.aws import AwsError
from rebar.storage.files import sha256_of
from rebar.storage.run_store import Progress, RunStore, StoredCheckpoint
from rebar.training.checkpoint import save_checkpoint
from rebar.training.distributed import World
from rebar.training.resume import record_origin
from rebar.training.upload import Uploader, fetch_run, run_store, start_uploads
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
    """A run's folder with a checkpoint; the run is named after the test."""
    name = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].partition(" ")[0]
    made = RunFolder(tmp_path / name)
    made.last_checkpoint.parent.mkdir(parents=True)
    made.config.write_text("training: {}\n")
    save(made, 1)
    return made


def save(folder: RunFolder, step: int) -> Progress:
    """Write a checkpoint and a line of the log, as training does."""
    with folder.log.open("a") as log:
        log.write(f'{{"event": "step", "step": {step}}}\n')
    save_checkpoint(folder.last_checkpoint, {"step": torch.tensor(step), "weights": torch.full((1000,), float(step))})
    return Progress(step // 10, step, step / 10)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.01)


def uploader_of(folder: RunFolder, *, step: int = 1) -> Uploader:
    return start_uploads(ADDRESS, folder, Progress(0, step, step / 10), 10, replaces=False)


def test_uploader_uploads_every_checkpoint_and_deletes_older_ones(s3: S3, folder: RunFolder) -> None:
    store, uploader = run_store(ADDRESS, folder), uploader_of(folder)
    name = folder.path.name
    for step in range(2, 6):
        uploader.checkpoint_saved(save(folder, step))
        eventually(lambda: (s3.names(name) and (read := store.read_manifest())) and read.progress.step == step)  # noqa: B023
    uploader.finish()
    manifest = store.read_manifest()
    assert manifest is not None
    assert manifest.progress == Progress(0, 5, 0.5)
    assert set(manifest.checkpoints) == {"last.pt", "previous.pt"}
    with folder.last_checkpoint.open("rb") as file:
        assert manifest.last.sha256 == sha256_of(file)
    stored = {f"/{stored.object}" for stored in manifest.checkpoints.values()}
    assert set(s3.names(name)) == stored | {"/config.yaml", "/log.jsonl", "/run.json"}
    assert s3.read(f"{name}/log.jsonl") == folder.log.read_bytes()


def test_checkpoint_saved_does_not_block(s3: S3, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    continues, store = threading.Event(), RunStore.store_checkpoint

    def store_slowly(self: RunStore, file: IO[bytes], present: Collection[str]) -> StoredCheckpoint:
        continues.wait(20)
        return store(self, file, present)

    monkeypatch.setattr(RunStore, "store_checkpoint", store_slowly)
    uploader = uploader_of(folder)
    for step in range(2, 30):  # during the first upload
        uploader.checkpoint_saved(save(folder, step))
    assert not [name for name in s3.names(folder.path.name) if name.endswith(".pt")]
    continues.set()
    uploader.finish()
    manifest = run_store(ADDRESS, folder).read_manifest()
    assert manifest is not None
    assert manifest.progress.step == 29
    assert len([name for name in s3.names(folder.path.name) if name.endswith(".pt")]) <= 2


def test_uploader_warns_about_a_failure_and_tries_again_at_the_end(
    s3: S3, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    uploader = uploader_of(folder)
    eventually(lambda: "/run.json" in s3.names(folder.path.name))
    for key in s3.names():  # the bucket is deleted for a while
        s3.client.delete_object(Bucket=BUCKET, Key=key)
    s3.client.delete_bucket(Bucket=BUCKET)
    uploader.checkpoint_saved(save(folder, 2))
    eventually(lambda: "NoSuchBucket" in capsys.readouterr().err)
    s3.client.create_bucket(Bucket=BUCKET)
    uploader.finish()
    manifest = run_store(ADDRESS, folder).read_manifest()
    assert manifest is not None
    assert manifest.progress.step == 2


def test_finish_abandons_an_upload_after_its_timeout(
    s3: S3, folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(RunStore, "store_record", lambda *_: over.wait(30))
    uploader = uploader_of(folder)
    uploader.finish(at_most=0.05)
    uploader.finish()  # returns at once
    assert "takes more than 0.05 s and is abandoned" in capsys.readouterr().err
    over.set()


def test_fetch_run_downloads_everything_needed_to_resume(
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


def test_run_started_without_overwrite_keeps_the_checkpoints_of_the_uploaded_run(s3: S3, folder: RunFolder) -> None:
    uploader_of(folder).finish()
    earlier = run_store(ADDRESS, folder).read_manifest()
    assert earlier is not None
    for step, overwrite in ((2, False), (3, True)):
        progress = save(folder, step)
        start_uploads(ADDRESS, folder, progress, 10, replaces=True, overwrite=overwrite).finish()
        stored = {f"/{earlier.last.object}"} & set(s3.names(folder.path.name))
        assert bool(stored) != overwrite


def test_run_killed_before_its_first_upload_still_replaces_the_earlier_run(
    s3: S3, folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AwsError("the network is down", code="aws-unreachable")

    uploader_of(folder, step=30).finish()  # the earlier run, with more progress than the next
    other = RunFolder(tmp_path / "elsewhere" / folder.path.name)
    other.prepare(from_scratch=True)
    record_origin("none", other)
    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "store_record", fail)
        start_uploads(ADDRESS, other, Progress(0, 0, 0.0), 10, replaces=True, overwrite=True).finish()
    save(other, 2)
    start_uploads(ADDRESS, other, Progress(0, 2, 0.2), 10, replaces=False, overwrite=True).finish()
    manifest = run_store(ADDRESS, other).read_manifest()
    assert manifest is not None
    assert manifest.progress.step == 2
    assert list(manifest.checkpoints) == ["last.pt"]
    with pytest.raises(RebarError) as error:
        start_uploads(ADDRESS, folder, Progress(0, 0, 0.0), 10, replaces=False)
    assert error.value.code == "run-continued-elsewhere"


def test_fetch_run_without_an_uploaded_run_changes_nothing(s3: S3, tmp_path: Path, world: World) -> None:
    fetch_run(ADDRESS, RunFolder(tmp_path / "new"), world, resume="auto", overwrite=False)
    assert not (tmp_path / "new").exists()


def test_fetch_run_rejects_an_invalid_manifest(s3: S3, tmp_path: Path, world: World) -> None:
    s3.client.put_object(Bucket=BUCKET, Key="foreign/run.json", Body=b'{"format": "other"}')
    with pytest.raises(RebarError) as error:
        fetch_run(ADDRESS, RunFolder(tmp_path / "foreign"), world, resume="auto", overwrite=False)
    assert error.value.code == "s3-run-invalid"


def test_run_store_rejects_an_invalid_address_without_repeating_it(s3: S3, folder: RunFolder) -> None:
    with pytest.raises(AwsError) as error:
        run_store(f"s3://AKIA:{SECRET}@bucket/", folder)
    assert error.value.code == "s3-invalid-url"
    assert SECRET not in str(error.value)


def test_run_store_without_boto3_reports_how_to_install_it(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(AwsError, match="pip install") as error:
        run_store(ADDRESS, folder)
    assert error.value.code == "aws-boto3-missing"
