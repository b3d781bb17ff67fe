"""Class folders in a bucket of a local S3 server."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rebar.beton.images import omitted_by
from rebar.errors import RebarError
from rebar.sources.s3 import S3Folder
from tests.sources.conftest import SYNSETS, Write, images_of_beton, images_of_folder, write_error
from tests.training.s3_server import BUCKET, s3_server


@pytest.fixture(scope="module")
def s3(imagenet: Path) -> Iterator[dict[str, str]]:
    """Environment variables for a server with s3://results/sets/imagenet/{train,val}/."""
    with s3_server() as server:
        for path in imagenet.glob("*/*/*"):
            key = f"sets/imagenet/{path.relative_to(imagenet)}"
            server.client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        for key in (
            "notes/readme.txt",
            *(f"cifar/{split}/{name}/0.jpg" for split in ("training", "valid") for name in ("apple", "train")),
            *("cifar/training/apple/", "cifar/training/apple/.0.jpg", "cifar/training/0.jpg", "cifar/training/a.txt"),
            *("both/valid/a/0.jpg", "both/validation/a/0.jpg"),
            *("tiny/train/a/0.jpg", "tiny/val/images/0.jpg"),
            *("empty/a/0.jpg", "empty/b/readme.txt"),
            *("flat/val/2.jpg", "flat/val/1.jpg", "flat/val/.1.jpg", "deep/a/b/c/d/1.jpg", "far/a/b/c/d/e/1.jpg"),
            "unlisted/val/1.jpg",
        ):
            server.client.put_object(Bucket=BUCKET, Key=key, Body=b"no image")
        for key, text in (
            ("tiny/val/val_annotations.txt", "0.jpg\tn00000001\t0\t0\t9\t9\n"),
            ("flat/ILSVRC2012_validation_ground_truth.txt", "2\n1\n"),
            ("flat/synsets.txt", "n00000008\nn00000007\n"),
            ("deep/val_labels.txt", "1.jpg n00000001\n"),
            ("far/val_labels.txt", "1.jpg n00000001\n"),
        ):
            server.client.put_object(Bucket=BUCKET, Key=key, Body=text.encode())
        yield server.variables


@pytest.mark.parametrize("below", ["", "/val/"])
def test_write_dataset_reads_class_folders_from_s3(
    below: str, s3: dict[str, str], imagenet: Path, write: Write
) -> None:
    file = write(f"s3://results/sets/imagenet{below}", "val", "--num-workers", 2, "--chunk-size", 4, **s3)
    assert file.class_names == SYNSETS
    assert images_of_beton(file) == images_of_folder(imagenet / "val")


def test_s3_folder_raises_for_missing_buckets_and_credentials(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in s3.items():
        monkeypatch.setenv(key, str(value))
    for url, code in (
        ("s3://results/notes", "source-empty"),
        ("s3://absent/a", "s3-source-unreadable"),
        ("s3://", "s3-address-invalid"),
    ):
        with pytest.raises(RebarError) as raised:
            S3Folder(url, "val")
        assert raised.value.code == code
    nobody: dict[str, object] = {
        **s3,
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    nobody["HOME"] = tmp_path
    message = write_error("s3://results/sets", "val", tmp_path / "val.beton", **nobody)
    assert "no AWS credentials" in message
    assert "[s3-source-unreadable]" in message


def test_s3_folder_follows_the_rules_of_folders(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in s3.items():
        monkeypatch.setenv(key, str(value))
    for url, split in (("s3://results/cifar", "train"), ("s3://results/cifar/training/", "val")):
        source = S3Folder(url, split)
        assert source.class_names == ["apple", "train"]
        assert [source.name(index) for index in range(len(source))] == [
            f"s3://results/cifar/training/{name}/0.jpg" for name in ("apple", "train")
        ]
        assert omitted_by(source) == {
            "file that is not an image": 1,
            "hidden file or folder": 1,
            "image outside the class folders": 1,
        }
    assert S3Folder("s3://results/cifar", "val").name(0) == "s3://results/cifar/valid/apple/0.jpg"
    for url, code in (
        ("s3://results/both", "source-split-ambiguous"),
        ("s3://results/empty", "source-empty-class"),
    ):
        with pytest.raises(RebarError) as raised:
            S3Folder(url, "val")
        assert raised.value.code == code


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("tiny", {"tiny/val/images/0.jpg": "n00000001"}),
        ("flat", {"flat/val/1.jpg": "n00000007", "flat/val/2.jpg": "n00000008"}),
        ("deep/a/b/c/d", {"deep/a/b/c/d/1.jpg": "n00000001"}),
    ],
)
def test_images_with_a_list_of_labels_on_s3(
    url: str, expected: dict[str, str], s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in s3.items():
        monkeypatch.setenv(key, str(value))
    source = S3Folder(f"s3://results/{url}", "val")
    found = {source.name(index): source.class_names[source.label(index)] for index in range(len(source))}
    assert found == {f"s3://results/{key}": synset for key, synset in expected.items()}
    assert source.read(0) == b"no image"


def test_images_on_s3_with_a_local_list_of_labels(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in s3.items():
        monkeypatch.setenv(key, str(value))
    labels = tmp_path / "mine.txt"
    labels.write_text("1.jpg n00000005\n2.jpg n00000006\n")
    source = S3Folder("s3://results/flat", "val", str(labels))
    assert source.class_names == ["n00000005", "n00000006"]
    labels.write_text("1.jpg n00000005\n")
    for url, given, code in (
        ("s3://results/flat", str(labels), "labels-incomplete"),
        ("s3://results/unlisted", "", "labels-not-found"),
        ("s3://results/far/a/b/c/d/e", "", "labels-not-found"),
    ):
        with pytest.raises(RebarError) as raised:
            S3Folder(url, "val", given)
        assert raised.value.code == code


class _TruncatedResponses(BaseHTTPRequestHandler):
    """A bucket with one image, of which the first ``failures`` responses are truncated."""

    failures = 0

    def do_GET(self) -> None:
        if "list-type" in self.path:
            image = b"<Contents><Key>a/1.jpg</Key><Size>8</Size></Contents>" if "prefix=&" in self.path else b""
            content = b"<ListBucketResult><IsTruncated>false</IsTruncated>" + image + b"</ListBucketResult>"
            sent = content
        else:
            content = sent = b"contents"
            if type(self).failures > 0:
                type(self).failures -= 1
                sent = content[:3]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("failures", "recovers"), [(2, True), (99, False)])
def test_interrupted_read_is_retried(failures: int, recovers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rebar.storage.s3.RETRY_SECONDS", 0.001)
    monkeypatch.setattr(_TruncatedResponses, "failures", failures)
    with ThreadingHTTPServer(("127.0.0.1", 0), _TruncatedResponses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        named = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_DEFAULT_REGION": "us-east-1"}
        for key, value in {**named, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(key, value)
        source = S3Folder("s3://bucket", "val")
        if recovers:
            assert source.read(0) == b"contents"
        else:
            with pytest.raises(OSError):
                source.read(0)
        server.shutdown()
