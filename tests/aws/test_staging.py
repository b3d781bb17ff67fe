"""``data stage``: from an S3 over HTTP to a file, through the command line."""

import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.aws.conftest import run_cli, run_failing, start_cli, wait_for
from tests.aws.strict_aws import StrictAws
from tests.conftest import REPOSITORY

BUCKET = "betons"
MIB = 2**20


@pytest.fixture
def s3(aws: StrictAws) -> Any:
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(request_checksum_calculation="when_required"))
    client.create_bucket(Bucket=BUCKET)
    return client


def ranges(aws: StrictAws, key: str = "train.beton") -> list[str]:
    return [
        request.parameters["HTTP_RANGE"]
        for request in aws.requests
        if request.action == f"GET /{BUCKET}/{key}" and "HTTP_RANGE" in request.parameters
    ]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


STAGE = ["data", "stage", f"s3://{BUCKET}/train.beton"]


def test_a_file_and_its_sidecar_arrive_whole(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    content = os.urandom(5 * MIB + 123)
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=content)
    s3.put_object(Bucket=BUCKET, Key="train.beton.json", Body=b"{}")
    target = tmp_path / "new" / "train.beton"
    assert "fetched" in run_cli(*STAGE, target, "--part-mib", "1").out
    assert target.read_bytes() == content
    assert target.with_name("train.beton.json").read_bytes() == b"{}"
    assert leftovers(target.parent) == []
    assert sorted(ranges(aws))[0] == f"bytes=0-{MIB - 1}"
    assert len(ranges(aws)) == 6
    etag = s3.head_object(Bucket=BUCKET, Key="train.beton")["ETag"]
    sent = [request.parameters.get("HTTP_IF_MATCH") for request in aws.requests if "HTTP_RANGE" in request.parameters]
    assert set(sent) == {etag, s3.head_object(Bucket=BUCKET, Key="train.beton.json")["ETag"]}


def test_what_is_there_is_only_checked(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=b"content")
    run_cli(*STAGE, tmp_path / "train.beton")
    before = len(ranges(aws))
    assert "there already" in run_cli(*STAGE, tmp_path / "train.beton").out
    assert len(ranges(aws)) == before
    (tmp_path / "train.beton").write_bytes(b"CONTENT")
    assert "fetched" in run_cli(*STAGE, tmp_path / "train.beton").out
    assert (tmp_path / "train.beton").read_bytes() == b"content"


def test_an_empty_object(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=b"")
    run_cli(*STAGE, tmp_path / "train.beton")
    assert (tmp_path / "train.beton").read_bytes() == b""


def test_the_checksum_of_parts_is_compared(s3: Any, tmp_path: Path) -> None:
    content = [os.urandom(5 * MIB), os.urandom(5 * MIB), os.urandom(MIB)]
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="train.beton")["UploadId"]
    parts = [
        {
            "PartNumber": number,
            "ETag": s3.upload_part(Bucket=BUCKET, Key="train.beton", UploadId=upload, PartNumber=number, Body=part)[
                "ETag"
            ],
        }
        for number, part in enumerate(content, 1)
    ]
    s3.complete_multipart_upload(Bucket=BUCKET, Key="train.beton", UploadId=upload, MultipartUpload={"Parts": parts})
    assert s3.head_object(Bucket=BUCKET, Key="train.beton")["ETag"].endswith('-3"')
    run_cli(*STAGE, tmp_path / "train.beton")
    assert (tmp_path / "train.beton").read_bytes() == b"".join(content)


def test_wrong_contents_are_not_given_the_name(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=b"content", Metadata={"sha256": "0" * 64})
    assert "does not have its SHA-256" in run_failing(*STAGE, tmp_path / "train.beton")
    assert list(tmp_path.iterdir()) == []
    right = hashlib.sha256(b"content").hexdigest()
    run_cli(*STAGE, tmp_path / "train.beton", "--sha256", right)


def test_without_a_checksum_it_is_said_so(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=b"content", ServerSideEncryption="aws:kms")
    assert "no checksum that can be compared" in run_failing(*STAGE, tmp_path / "train.beton")
    run_cli(*STAGE, tmp_path / "train.beton", "--unverified")


def test_an_object_that_changes_meanwhile_stops(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=os.urandom(3 * MIB))
    changed = []

    def change(request: Any) -> None:
        if "HTTP_RANGE" in request.parameters and not changed:
            changed.append(True)
            s3.put_object(Bucket=BUCKET, Key="train.beton", Body=os.urandom(3 * MIB))

    aws.watch = change
    told = run_failing(*STAGE, tmp_path / "train.beton", "--part-mib", "1", "--workers", "1")
    assert "was changed while it was being fetched" in told
    assert not (tmp_path / "train.beton").exists()
    aws.watch = None
    run_cli(*STAGE, tmp_path / "train.beton", "--part-mib", "1")
    assert (tmp_path / "train.beton").read_bytes() == s3.get_object(Bucket=BUCKET, Key="train.beton")["Body"].read()


def test_killed_it_goes_on_where_it_was(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    content = os.urandom(8 * MIB)
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=content)
    target = tmp_path / "train.beton"
    process = start_cli(*STAGE, target, "--part-mib", "1", "--workers", "1")

    def kill_at_the_fifth(request: Any) -> None:
        if "HTTP_RANGE" in request.parameters and len(ranges(aws)) == 5:
            os.kill(process.pid, signal.SIGKILL)

    aws.watch = kill_at_the_fifth
    assert process.wait(timeout=60) == -9
    process.communicate()
    aws.watch = None
    wait_for(lambda: not target.exists())
    aws.requests.clear()
    run_cli(*STAGE, target, "--part-mib", "1")
    assert target.read_bytes() == content
    assert 4 <= len(ranges(aws)) <= 5  # of eight
    assert leftovers(tmp_path) == []


def test_a_broken_answer_is_fetched_again(
    aws: StrictAws, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rebar.aws.staging.RETRY_SECONDS", 0.0)
    content = os.urandom(2 * MIB)
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=content)
    aws.fail_ranges = 3
    run_cli(*STAGE, tmp_path / "train.beton", "--part-mib", "1")
    assert (tmp_path / "train.beton").read_bytes() == content
    aws.fail_ranges = 1000
    assert "could not be fetched" in run_failing(*STAGE, tmp_path / "again.beton", "--part-mib", "1")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"s3://{BUCKET}/nothing.beton", "AWS answered 404"),
        ("https://example.com/train.beton", "is no object of S3"),
        (f"s3://{BUCKET}/", "is no object of S3"),
    ],
)
def test_what_cannot_be_fetched_is_told(s3: Any, tmp_path: Path, source: str, message: str) -> None:
    assert message in run_failing("data", "stage", source, tmp_path / "train.beton")


def test_a_disk_that_is_too_small_is_told_before(
    aws: StrictAws, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=b"content")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    assert "0.0 GiB free" in run_failing(*STAGE, tmp_path / "train.beton")
    assert ranges(aws) == []


@pytest.mark.parametrize("source", [f"s3://{BUCKET}/imagenet", f"s3://{BUCKET}/imagenet/val.beton"])
def test_the_script_that_stages_from_disks_takes_s3(s3: Any, tmp_path: Path, source: str) -> None:
    names = ["val.beton", *([] if source.endswith(".beton") else ["train.beton"])]
    for name in names:
        s3.put_object(Bucket=BUCKET, Key=f"imagenet/{name}", Body=name.encode() * MIB)
    command = [REPOSITORY / "scripts" / "stage_dataset.sh", source, tmp_path / "nvme", "--num-workers", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "nvme").iterdir()} == {
        name: name.encode() * MIB for name in names
    }
    command[1] = f"s3://{BUCKET}/elsewhere"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "elsewhere/train.beton" in done.stderr
    assert "Traceback" not in done.stderr
