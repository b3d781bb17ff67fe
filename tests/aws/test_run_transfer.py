"""``run upload`` and ``run fetch``, against S3 over HTTP."""

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rebar.aws.transfer import upload_run
from rebar.storage.aws import make_client
from rebar.storage.run_store import Origin
from rebar.storage.s3 import S3Prefix
from tests.aws.conftest import run_cli, run_failing
from tests.aws.strict_aws import ErrorResponse, Request, StrictAws

PLACE = "s3://bucket/runs/g5-16"


def run_folder(path: Path, *, step: int, last: bytes, state: str = "interrupted", **files: str) -> Path:
    """Make a run's folder as training does, except for the contents of the checkpoint."""
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    (path / "checkpoints/last.pt").write_bytes(last)
    status = {"state": state, "reason": "", "epoch": step // 10, "step": step, "exit_code": 75, "time": float(step)}
    status["position"] = step / 10
    (path / "status.json").write_text(json.dumps(status))
    (path / "log.jsonl").write_text('{"event": "step", "step": 5, "epoch": 0.5}\n')
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def keys(s3: Any) -> set[str]:
    return {each["Key"].removeprefix("runs/g5-16/") for each in s3.list_objects_v2(Bucket="bucket").get("Contents", ())}


def manifest(s3: Any) -> Any:
    return json.loads(s3.get_object(Bucket="bucket", Key="runs/g5-16/run.json")["Body"].read())


def test_run_fetch_restores_an_uploaded_run(s3: Any, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "here", step=25, last=b"twenty-five", wandb_id="abc")
    (folder / "checkpoints/best.pt").write_bytes(b"twenty")
    (folder / "checkpoints/previous.pt").write_bytes(b"older")
    assert "step 25, 2 new checkpoints" in run_cli("run", "upload", folder, PLACE).out
    assert (manifest(s3)["step"], manifest(s3)["position"]) == (25, 2.5)
    assert "at step 25" in run_cli("run", "fetch", PLACE, tmp_path / "there").out
    for name in ("checkpoints/last.pt", "checkpoints/best.pt", "log.jsonl"):
        assert (tmp_path / "there" / name).read_bytes() == (folder / name).read_bytes()
    assert not [path for path in (tmp_path / "there").rglob(".*") if path.is_file()]


def test_run_fetch_keeps_another_checkpoint_without_replace(s3: Any, tmp_path: Path) -> None:
    run_cli("run", "upload", run_folder(tmp_path / "here", step=25, last=b"twenty-five"), PLACE)
    there = run_folder(tmp_path / "there", step=30, last=b"thirty")
    assert "[run-exists]" in run_failing("run", "fetch", PLACE, there)
    assert (there / "checkpoints/last.pt").read_bytes() == b"thirty"
    run_cli("run", "fetch", PLACE, there, "--replace")
    assert (there / "checkpoints/last.pt").read_bytes() == b"twenty-five"
    (there / "log.jsonl").write_text("later lines")
    run_cli("run", "fetch", PLACE, there)
    assert (there / "log.jsonl").read_text() == "later lines"


def test_run_upload_keeps_checkpoints_that_only_s3_has(s3: Any, tmp_path: Path) -> None:
    first = run_folder(tmp_path / "first", step=1, last=b"one")
    (first / "checkpoints/epoch_1.pt").write_bytes(b"the first epoch")
    run_cli("run", "upload", first, PLACE)
    run_cli("run", "fetch", PLACE, tmp_path / "second")
    run_cli("run", "upload", run_folder(tmp_path / "second", step=2, last=b"two"), PLACE)
    kept = manifest(s3)["checkpoints"]["epoch_1.pt"]["object"]
    assert s3.get_object(Bucket="bucket", Key=f"runs/g5-16/{kept}")["Body"].read() == b"the first epoch"


def test_run_commands_without_a_run(s3: Any, tmp_path: Path) -> None:
    assert "no uploaded run" in run_cli("run", "fetch", PLACE, tmp_path / "there").out
    assert not (tmp_path / "there").exists()
    (tmp_path / "empty").mkdir()
    assert "[run-without-checkpoint]" in run_failing("run", "upload", tmp_path / "empty", PLACE)
    assert "[s3-invalid-url]" in run_failing("run", "upload", tmp_path / "empty", "bucket/runs")


def test_run_upload_writes_the_manifest_last_and_deletes_old_objects(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "here", step=1, last=b"one")
    for step, content in ((1, b"one"), (2, b"two"), (3, b"three")):
        run_folder(folder, step=step, last=content)
        run_cli("run", "upload", folder, PLACE)
    named = manifest(s3)["checkpoints"]
    assert {name for name in keys(s3) if name.startswith("checkpoints/")} == {each["object"] for each in named.values()}
    assert set(named) == {"last.pt", "previous.pt"}
    puts = [each.action for each in aws.requests if each.action.startswith("PUT /bucket/runs/g5-16/")]
    assert puts[-1].endswith("/run.json")
    sent = len(puts)
    run_cli("run", "upload", folder, PLACE)  # the same checkpoint is not uploaded again
    again = [each.action for each in aws.requests if each.action.startswith("PUT /bucket/runs/g5-16/")][sent:]
    assert not any("/checkpoints/" in action for action in again)


def test_interrupted_run_upload_keeps_the_previous_version(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "here", step=1, last=b"one")
    run_cli("run", "upload", folder, PLACE)
    run_folder(folder, step=2, last=b"two")
    aws.refuse["PUT /bucket/runs/g5-16/log.jsonl"] = ErrorResponse("AccessDenied", "no", 403)
    assert "[aws-request-refused]" in run_failing("run", "upload", folder, PLACE)
    run_cli("run", "fetch", PLACE, tmp_path / "there")
    assert (tmp_path / "there/checkpoints/last.pt").read_bytes() == b"one"


def test_run_upload_refuses_to_replace_a_later_step(s3: Any, tmp_path: Path) -> None:
    run_cli("run", "upload", run_folder(tmp_path / "far", step=9, last=b"nine"), PLACE)
    near = run_folder(tmp_path / "near", step=2, last=b"two")
    assert "[run-continued-elsewhere]" in run_failing("run", "upload", near, PLACE)
    assert manifest(s3)["step"] == 9
    run_folder(near, step=0, last=b"nine", state="running")  # the same checkpoint, fetched, before the first step
    run_cli("run", "upload", near, PLACE)
    assert manifest(s3)["step"] == 9


def test_concurrent_run_uploads_lose_nothing(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    """The second upload runs while the first is about to replace the manifest."""
    one = run_folder(tmp_path / "one", step=1, last=b"one")
    two = run_folder(tmp_path / "two", step=2, last=b"two")
    run_cli("run", "upload", one, PLACE)
    run_folder(one, step=3, last=b"three")
    interrupted = threading.Event()

    def meanwhile(request: Request) -> None:
        if request.action == "PUT /bucket/runs/g5-16/run.json" and not interrupted.is_set():
            interrupted.set()
            upload_run(make_client("s3"), two, S3Prefix("bucket", "runs/g5-16"))

    aws.watch = meanwhile
    run_cli("run", "upload", one, PLACE)
    aws.watch = None
    assert manifest(s3)["step"] == 3
    run_cli("run", "fetch", PLACE, tmp_path / "there")
    assert (tmp_path / "there/checkpoints/last.pt").read_bytes() == b"three"


@pytest.mark.parametrize("replace", [False, True])
def test_run_fetch_into_a_folder_without_a_last_checkpoint_keeps_its_files(
    replace: bool, s3: Any, tmp_path: Path
) -> None:
    near, there = (run_folder(tmp_path / name, step=5, last=b"uploaded") for name in ("near", "there"))
    (near / "checkpoints/best.pt").write_bytes(b"uploaded best")
    run_cli("run", "upload", near, PLACE)
    mine = {"log.jsonl": b"mine", "checkpoints/best.pt": b"my best", "checkpoints/epoch_003.pt": b"third"}
    mine["origin.json"] = json.dumps(asdict(Origin("/mine/last.pt"))).encode()
    (there / "checkpoints/last.pt").unlink()
    for name, content in mine.items():
        (there / name).write_bytes(content)
    printed = run_cli("run", "fetch", PLACE, there, *(["--replace"] if replace else [])).err
    assert (there / "log.jsonl").read_bytes() == (near / "log.jsonl").read_bytes()
    assert (there / "checkpoints/best.pt").read_bytes() == b"uploaded best"
    assert (there / "checkpoints/epoch_003.pt").read_bytes() == b"third"
    assert ("was renamed to best.pt.1" in printed) != replace
    kept = {
        name: (there / f"{name}.1").read_bytes()
        for name in ("log.jsonl", "checkpoints/best.pt", "origin.json")
        if not replace
    }
    assert all(kept[name] == mine[name] for name in kept)
    assert (there / "log.jsonl.1").exists() != replace
    run_cli("run", "fetch", PLACE, there)  # everything is equal now
    assert not (there / "log.jsonl.2").exists()


def test_run_fetch_detects_damage(s3: Any, tmp_path: Path) -> None:
    run_cli("run", "upload", run_folder(tmp_path / "here", step=1, last=b"one"), PLACE)
    (stored,) = manifest(s3)["checkpoints"].values()
    s3.put_object(Bucket="bucket", Key=f"runs/g5-16/{stored['object']}", Body=b"ono")
    assert "[s3-checksum-mismatch]" in run_failing("run", "fetch", PLACE, tmp_path / "there")
    assert not (tmp_path / "there/checkpoints/last.pt").exists()
    s3.put_object(Bucket="bucket", Key="runs/g5-16/run.json", Body=b'{"format": "another"}')
    assert "[s3-run-invalid]" in run_failing("run", "fetch", PLACE, tmp_path / "there")


def test_run_fetch_follows_an_upload_during_the_download(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    """The named checkpoint is deleted before its download; the newer one is fetched."""
    folder = run_folder(tmp_path / "here", step=1, last=b"one")
    run_cli("run", "upload", folder, PLACE)
    uploaded = threading.Event()

    def meanwhile(request: Request) -> None:
        if request.action.startswith("HEAD /bucket/runs/g5-16/checkpoints/") and not uploaded.is_set():
            uploaded.set()
            for step, content in ((2, b"two"), (3, b"three")):
                run_folder(folder, step=step, last=content)
                upload_run(make_client("s3"), folder, S3Prefix("bucket", "runs/g5-16"))

    aws.watch = meanwhile
    assert "at step 3" in run_cli("run", "fetch", PLACE, tmp_path / "there").out
    assert (tmp_path / "there/checkpoints/last.pt").read_bytes() == b"three"


def test_run_fetch_uses_the_previous_checkpoint_if_the_last_is_damaged(s3: Any, tmp_path: Path) -> None:
    for step, content in ((1, b"one"), (2, b"two")):
        run_cli("run", "upload", run_folder(tmp_path / "here", step=step, last=content), PLACE)
    damaged = manifest(s3)["checkpoints"]["last.pt"]["object"]
    s3.put_object(Bucket="bucket", Key=f"runs/g5-16/{damaged}", Body=b"twx")
    assert "The previous checkpoint is used" in run_cli("run", "fetch", PLACE, tmp_path / "there").err
    assert (tmp_path / "there/checkpoints/last.pt").read_bytes() == b"one"
    assert damaged in keys(s3)  # nothing is deleted by a download
    assert damaged not in {stored["object"] for stored in manifest(s3)["checkpoints"].values()}
