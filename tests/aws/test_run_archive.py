"""A run's folder to S3 and back, through the command line."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rebar.aws.client import Clients
from rebar.aws.run_archive import upload_run
from rebar.aws.s3_transfer import Folder
from tests.aws.conftest import run_cli, run_failing
from tests.aws.strict_aws import Refused, Request, StrictAws

PLACE = "s3://bucket/runs/g5-16"


@pytest.fixture
def s3(aws: StrictAws) -> Any:
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    return client


def run_folder(path: Path, *, step: int, last: bytes, state: str = "interrupted", **files: str) -> Path:
    """As training leaves it, but for what is in the checkpoints."""
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    (path / "checkpoints/last.pt").write_bytes(last)
    status = {"state": state, "reason": "", "epoch": step // 10, "step": step, "exit_code": 75, "time": float(step)}
    (path / "status.json").write_text(json.dumps(status))
    (path / "log.jsonl").write_text('{"event": "step", "step": 5, "epoch": 0.5}\n')
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def keys(s3: Any) -> set[str]:
    return {each["Key"].removeprefix("runs/g5-16/") for each in s3.list_objects_v2(Bucket="bucket").get("Contents", ())}


def pointer(s3: Any) -> Any:
    return json.loads(s3.get_object(Bucket="bucket", Key="runs/g5-16/run.json")["Body"].read())


def test_there_and_back(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "here", step=25, last=b"twenty-five", wandb_id="abc")
    (folder / "checkpoints/best.pt").write_bytes(b"twenty")
    (folder / "checkpoints/previous.pt").write_bytes(b"older")
    assert "step 25, 2 new checkpoints" in run_cli("run", "upload", folder, PLACE).out
    assert (pointer(s3)["step"], pointer(s3)["position"]) == (25, 2.5)
    assert "at step 25" in run_cli("run", "fetch", PLACE, tmp_path / "there").out
    for name in ("checkpoints/last.pt", "checkpoints/best.pt", "log.jsonl"):
        assert (tmp_path / "there" / name).read_bytes() == (folder / name).read_bytes()
    assert not [path for path in (tmp_path / "there").rglob(".*") if path.is_file()]
    assert not list(folder.glob(".upload-*"))


def test_another_checkpoint_is_not_replaced_unasked(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    run_cli("run", "upload", run_folder(tmp_path / "here", step=25, last=b"twenty-five"), PLACE)
    there = run_folder(tmp_path / "there", step=30, last=b"thirty")
    assert "is another checkpoint" in run_failing("run", "fetch", PLACE, there)
    assert (there / "checkpoints/last.pt").read_bytes() == b"thirty"
    run_cli("run", "fetch", PLACE, there, "--replace")
    assert (there / "checkpoints/last.pt").read_bytes() == b"twenty-five"
    run_cli("run", "fetch", PLACE, there)


def test_what_a_killed_upload_left_is_removed(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "here", step=1, last=b"one")
    (folder / ".upload-old").mkdir()
    os.utime(folder / ".upload-old", (0, 0))
    run_cli("run", "upload", folder, PLACE)
    assert not list(folder.glob(".upload-*"))


def test_a_run_that_is_not_there_is_none(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    assert "holds no run yet" in run_cli("run", "fetch", PLACE, tmp_path / "there").out
    assert not (tmp_path / "there").exists()
    (tmp_path / "empty").mkdir()
    assert "has no checkpoint" in run_failing("run", "upload", tmp_path / "empty", PLACE)
    assert "must be an s3:// folder" in run_failing("run", "upload", tmp_path / "empty", "bucket/runs")


def test_the_pointer_comes_last_and_what_it_replaces_goes(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "here", step=1, last=b"one")
    for step, content in ((1, b"one"), (2, b"two"), (3, b"three")):
        run_folder(folder, step=step, last=content)
        run_cli("run", "upload", folder, PLACE)
    named = pointer(s3)["checkpoints"]
    assert {name for name in keys(s3) if name.startswith("checkpoints/")} == {each["object"] for each in named.values()}
    assert set(named) == {"last.pt", "previous.pt"}
    puts = [each.action for each in aws.requests if each.action.startswith("PUT /bucket/runs/g5-16/")]
    assert puts[-1].endswith("/run.json")
    sent = len(puts)
    run_cli("run", "upload", folder, PLACE)  # nothing new: no checkpoint is sent again
    again = [each.action for each in aws.requests if each.action.startswith("PUT /bucket/runs/g5-16/")][sent:]
    assert not any("/checkpoints/" in action for action in again)


def test_an_upload_that_breaks_off_leaves_the_version_before(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "here", step=1, last=b"one")
    run_cli("run", "upload", folder, PLACE)
    run_folder(folder, step=2, last=b"two")
    aws.refuse["PUT /bucket/runs/g5-16/log.jsonl"] = Refused("AccessDenied", "no", 403)
    assert "AWS answered 403" in run_failing("run", "upload", folder, PLACE)
    run_cli("run", "fetch", PLACE, tmp_path / "there")
    assert (tmp_path / "there/checkpoints/last.pt").read_bytes() == b"one"


def test_an_older_state_does_not_replace_a_newer_one(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    run_cli("run", "upload", run_folder(tmp_path / "far", step=9, last=b"nine"), PLACE)
    near = run_folder(tmp_path / "near", step=2, last=b"two")
    assert "is at step 9" in run_failing("run", "upload", near, PLACE)
    assert pointer(s3)["step"] == 9
    run_folder(near, step=0, last=b"nine", state="running")  # the same checkpoint, fetched, and no step made since
    run_cli("run", "upload", near, PLACE)
    assert pointer(s3)["step"] == 9


def test_two_uploads_at_a_time_lose_nothing(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    """The second one begins and ends while the first is about to replace the pointer."""
    one = run_folder(tmp_path / "one", step=1, last=b"one")
    two = run_folder(tmp_path / "two", step=2, last=b"two")
    run_cli("run", "upload", one, PLACE)
    run_folder(one, step=3, last=b"three")
    met = threading.Event()

    def meanwhile(request: Request) -> None:
        if request.action == "PUT /bucket/runs/g5-16/run.json" and not met.is_set():
            met.set()
            upload_run(Clients(), two, Folder("bucket", "runs/g5-16"))

    aws.watch = meanwhile
    run_cli("run", "upload", one, PLACE)
    aws.watch = None
    assert pointer(s3)["step"] == 3
    run_cli("run", "fetch", PLACE, tmp_path / "there")
    assert (tmp_path / "there/checkpoints/last.pt").read_bytes() == b"three"


def test_damage_is_noticed(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    run_cli("run", "upload", run_folder(tmp_path / "here", step=1, last=b"one"), PLACE)
    (stored,) = pointer(s3)["checkpoints"].values()
    s3.put_object(Bucket="bucket", Key=f"runs/g5-16/{stored['object']}", Body=b"ono")
    assert "does not have its SHA-256" in run_failing("run", "fetch", PLACE, tmp_path / "there")
    assert not (tmp_path / "there/checkpoints/last.pt").exists()
    s3.put_object(Bucket="bucket", Key="runs/g5-16/run.json", Body=b'{"format": "another"}')
    assert "is damaged, or of another version" in run_failing("run", "fetch", PLACE, tmp_path / "there")


def test_a_run_that_goes_on_while_it_is_fetched(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    """The checkpoint that the pointer named is gone when it is asked for; the newer one comes."""
    folder = run_folder(tmp_path / "here", step=1, last=b"one")
    run_cli("run", "upload", folder, PLACE)
    went_on = threading.Event()

    def meanwhile(request: Request) -> None:
        if request.action.startswith("HEAD /bucket/runs/g5-16/checkpoints/") and not went_on.is_set():
            went_on.set()
            for step, content in ((2, b"two"), (3, b"three")):
                run_folder(folder, step=step, last=content)
                upload_run(Clients(), folder, Folder("bucket", "runs/g5-16"))

    aws.watch = meanwhile
    assert "at step 3" in run_cli("run", "fetch", PLACE, tmp_path / "there").out
    assert (tmp_path / "there/checkpoints/last.pt").read_bytes() == b"three"
