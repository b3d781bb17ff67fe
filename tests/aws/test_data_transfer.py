"""``data send`` and ``data stage``, against S3 over HTTP."""

import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.aws.conftest import run_cli, run_failing, start_cli, wait_for
from tests.aws.strict_aws import StrictAws
from tests.conftest import REPOSITORY

BUCKET = "bucket"
MIB = 2**20


def ranges(aws: StrictAws, key: str = "train.beton") -> list[str]:
    return [
        request.parameters["HTTP_RANGE"]
        for request in aws.requests
        if request.action == f"GET /{BUCKET}/{key}" and "HTTP_RANGE" in request.parameters
    ]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


STAGE = ["data", "stage", f"s3://{BUCKET}/train.beton"]


def test_data_stage_downloads_a_beton_and_its_sidecar(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    content = os.urandom(5 * MIB + 123)
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=content)
    s3.put_object(Bucket=BUCKET, Key="train.beton.json", Body=b"{}")
    target = tmp_path / "new" / "train.beton"
    assert "downloaded" in run_cli(*STAGE, target, "--part-mib", "1").out
    assert target.read_bytes() == content
    assert target.with_name("train.beton.json").read_bytes() == b"{}"
    assert leftovers(target.parent) == []
    assert sorted(ranges(aws))[0] == f"bytes=0-{MIB - 1}"
    assert len(ranges(aws)) == 6
    etag = s3.head_object(Bucket=BUCKET, Key="train.beton")["ETag"]
    sent = [request.parameters.get("HTTP_IF_MATCH") for request in aws.requests if "HTTP_RANGE" in request.parameters]
    assert set(sent) == {etag, s3.head_object(Bucket=BUCKET, Key="train.beton.json")["ETag"]}


def test_data_stage_skips_an_identical_file(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=b"content")
    run_cli(*STAGE, tmp_path / "train.beton")
    before = len(ranges(aws))
    assert "unchanged" in run_cli(*STAGE, tmp_path / "train.beton").out
    assert len(ranges(aws)) == before
    (tmp_path / "train.beton").write_bytes(b"CONTENT")
    assert "downloaded" in run_cli(*STAGE, tmp_path / "train.beton", "--overwrite").out
    assert (tmp_path / "train.beton").read_bytes() == b"content"


def test_data_stage_replaces_another_file_only_with_overwrite(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=b"content")
    s3.put_object(Bucket=BUCKET, Key="train.beton.json", Body=b"{}")
    for name in ("train.beton", "train.beton.json"):
        (tmp_path / name).write_bytes(b"mine")
        assert "[write-target-exists]" in run_failing(*STAGE, tmp_path / "train.beton")
        assert (tmp_path / name).read_bytes() == b"mine"
        run_cli(*STAGE, tmp_path / "train.beton", "--overwrite")
    assert (tmp_path / "train.beton").read_bytes() == b"content"
    assert (tmp_path / "train.beton.json").read_bytes() == b"{}"


def test_data_stage_of_an_empty_object(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=b"")
    run_cli(*STAGE, tmp_path / "train.beton")
    assert (tmp_path / "train.beton").read_bytes() == b""


def test_data_stage_compares_the_etag_of_a_multipart_upload(s3: Any, tmp_path: Path) -> None:
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


def test_data_stage_refuses_a_wrong_checksum(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=b"content", Metadata={"sha256": "0" * 64})
    assert "[s3-checksum-mismatch]" in run_failing(*STAGE, tmp_path / "train.beton")
    assert list(tmp_path.iterdir()) == []
    right = hashlib.sha256(b"content").hexdigest()
    run_cli(*STAGE, tmp_path / "train.beton", "--sha256", right)


def test_data_stage_without_a_checksum_requires_unverified(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=b"content", ServerSideEncryption="aws:kms")
    assert "[s3-no-checksum]" in run_failing(*STAGE, tmp_path / "train.beton")
    run_cli(*STAGE, tmp_path / "train.beton", "--unverified")


def test_data_stage_refuses_an_object_that_is_replaced_meanwhile(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=os.urandom(3 * MIB))
    changed = []

    def change(request: Any) -> None:
        if "HTTP_RANGE" in request.parameters and not changed:
            changed.append(True)
            s3.put_object(Bucket=BUCKET, Key="train.beton", Body=os.urandom(3 * MIB))

    aws.watch = change
    stderr = run_failing(*STAGE, tmp_path / "train.beton", "--part-mib", "1", "--workers", "1")
    assert "[s3-object-changed]" in stderr
    assert not (tmp_path / "train.beton").exists()
    aws.watch = None
    run_cli(*STAGE, tmp_path / "train.beton", "--part-mib", "1")
    assert (tmp_path / "train.beton").read_bytes() == s3.get_object(Bucket=BUCKET, Key="train.beton")["Body"].read()


def test_data_stage_resumes_after_a_kill(aws: StrictAws, s3: Any, tmp_path: Path) -> None:
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
    assert 4 <= len(ranges(aws)) <= 5  # of eight parts
    assert leftovers(tmp_path) == []


def test_data_stage_retries_failed_requests(
    aws: StrictAws, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    content = os.urandom(2 * MIB)
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=content)
    aws.fail_ranges = 3
    run_cli(*STAGE, tmp_path / "train.beton", "--part-mib", "1")
    assert (tmp_path / "train.beton").read_bytes() == content
    aws.fail_ranges = 1000
    assert "[aws-request-refused]" in run_failing(*STAGE, tmp_path / "again.beton", "--part-mib", "1")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (f"s3://{BUCKET}/nothing.beton", "s3-not-found"),
        ("https://example.com/train.beton", "s3-invalid-url"),
        (f"s3://{BUCKET}/", "s3-invalid-url"),
    ],
)
def test_data_stage_of_an_invalid_source(s3: Any, tmp_path: Path, source: str, code: str) -> None:
    assert f"[{code}]" in run_failing("data", "stage", source, tmp_path / "train.beton")


def test_data_stage_on_a_small_disk_fails_before_the_download(
    aws: StrictAws, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=b"content")

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(b"content") - 1))
    assert "[disk-full]" in run_failing(*STAGE, tmp_path / "train.beton")
    assert ranges(aws) == []


def test_stage_dataset_script_downloads_from_s3(s3: Any, tmp_path: Path) -> None:
    def stage(source: str, target: str) -> "subprocess.CompletedProcess[str]":
        script = REPOSITORY / "scripts" / "stage_dataset.sh"
        words = [script, f"s3://{BUCKET}/{source}", tmp_path / target, "--num-workers", "3"]
        return subprocess.run(words, capture_output=True, text=True)

    contents = {name: name.encode() * MIB for name in ("train.beton", "val.beton")}
    for name, content in contents.items():
        s3.put_object(Bucket=BUCKET, Key=f"imagenet/{name}", Body=content)
    done = stage("imagenet", "both")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "both").iterdir()} == contents
    done = stage("imagenet/val.beton", "one")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["val.beton"]
    done = stage("elsewhere", "none")
    assert done.returncode != 0
    assert "elsewhere/train.beton" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_send_uploads_in_parts_with_a_sha256_that_stage_compares(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "train.beton").write_bytes(content := os.urandom(17 * MIB))
    run_cli("data", "send", tmp_path / "train.beton", f"s3://{BUCKET}")
    head = s3.head_object(Bucket=BUCKET, Key="train.beton")
    assert head["Metadata"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert head["ETag"].endswith('-2"')
    run_cli(*STAGE, tmp_path / "copy.beton")
    assert (tmp_path / "copy.beton").read_bytes() == content
    assert "[file-not-found]" in run_failing("data", "send", tmp_path / "missing", f"s3://{BUCKET}")


def test_data_stage_resumes_a_download_whose_connection_breaks(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore does not retry while it reads a body: download() does."""
    from botocore.exceptions import IncompleteReadError
    from botocore.response import StreamingBody

    monkeypatch.setattr("rebar.storage.s3.RETRY_SECONDS", 0.0)
    read, failures = StreamingBody.read, iter([True, True])

    def fail_twice(body: StreamingBody, amt: int | None = None) -> bytes:
        if next(failures, False):
            raise IncompleteReadError(actual_bytes=1, expected_bytes=2)
        content: bytes = read(body, amt)
        return content

    content = os.urandom(2 * MIB)
    s3.put_object(Bucket=BUCKET, Key="train.beton", Body=content)
    monkeypatch.setattr(StreamingBody, "read", fail_twice)
    run_cli(*STAGE, tmp_path / "train.beton", "--part-mib", "1")
    assert (tmp_path / "train.beton").read_bytes() == content
