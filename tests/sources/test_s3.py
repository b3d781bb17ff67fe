"""Class folders in a bucket, through the command line, from a real server over HTTP."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rebar.sources.s3 import S3Folder
from tests.sources.conftest import SYNSETS, Write, images_of_file, images_of_folder, refusal

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def s3(imagenet: Path) -> Iterator[dict[str, object]]:
    """The variables that lead to a server with s3://images/sets/imagenet/{train,val}/."""
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    named = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    client = boto3.client(
        "s3",
        endpoint_url=named["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    client.create_bucket(Bucket="images")
    for path in imagenet.glob("*/*/*"):
        key = f"sets/imagenet/{path.relative_to(imagenet)}"
        client.put_object(Bucket="images", Key=key, Body=path.read_bytes())
    client.put_object(Bucket="images", Key="notes/readme.txt", Body=b"no image")
    yield {**named, **keys}
    server.stop()


@pytest.mark.parametrize("below", ["", "/val/"])
def test_class_folders(below: str, s3: dict[str, object], imagenet: Path, write: Write) -> None:
    file = write(f"s3://images/sets/imagenet{below}", "val", "--num-workers", 2, "--chunk-size", 4, **s3)
    assert file.class_names == SYNSETS
    assert images_of_file(file) == images_of_folder(imagenet / "val")


def test_mistakes_are_told(s3: dict[str, object], tmp_path: Path) -> None:
    target = tmp_path / "val.beton"
    assert "s3://images/notes/: holds no images" in refusal("s3://images/notes", "val", target, **s3)
    assert "s3://absent/a/val/: cannot be listed" in refusal("s3://absent/a", "val", target, **s3)
    nobody = {**s3, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    nobody["HOME"] = tmp_path
    assert "there are no AWS credentials" in refusal("s3://images/sets", "val", target, **nobody)


class _BreaksOff(BaseHTTPRequestHandler):
    """One image in a bucket; ``failures`` times it ends in the middle."""

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


@pytest.mark.parametrize(("failures", "whole"), [(2, True), (99, False)])
def test_a_connection_that_breaks_off(failures: int, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rebar.sources.s3.FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(_BreaksOff, "failures", failures)
    with ThreadingHTTPServer(("127.0.0.1", 0), _BreaksOff) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        named = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_DEFAULT_REGION": "us-east-1"}
        for key, value in {**named, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(key, value)
        source = S3Folder("s3://bucket", "val")
        if whole:
            assert source.read(0) == b"contents"
        else:
            with pytest.raises(OSError, match="6 times"):
                source.read(0)
        server.shutdown()
