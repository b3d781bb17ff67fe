"""Runs whose results go to S3, through the command line, to a real server over HTTP; the next machine goes on."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import train_imagenet
from rebar.errors import RebarError
from tests.conftest import Data, read_events, run
from tests.test_resume import assert_same_run, disturb, send
from tests.training.s3_server import BUCKET, KEY_ID, S3, SECRET, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


def assert_whole(s3: S3, run_name: str, folder: Path, *names: str) -> None:
    """What the manifest names is there, and nothing else; the newest checkpoint and the log are the folder's."""
    manifest = s3.manifest(run_name)
    objects = {stored["object"] for stored in manifest["checkpoints"].values()}
    assert {name for name in s3.names(f"{run_name}/") if name.startswith("checkpoints/")} == objects
    for name in names or ("last.pt", "best.pt"):
        stored = s3.read(f"{run_name}/{manifest['checkpoints'][name]['object']}")
        assert stored == (folder / "checkpoints" / name).read_bytes()
    for name in ("config.yaml", "log.jsonl", "status.json"):
        assert s3.read(f"{run_name}/{name}") == (folder / name).read_bytes()


def assert_no_secret(folder: Path, *shown: str) -> None:
    for text in [*shown, *(path.read_text() for path in folder.glob("*.*") if path.suffix != ".png")]:
        assert KEY_ID not in text
        assert SECRET not in text


def train_here(s3: S3, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    """The command in this process, which is quicker."""
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    train_imagenet.main([str(word) for word in words[1:]])


def refusal(s3: S3, monkeypatch: pytest.MonkeyPatch, *words: str | Path, **variables: str) -> str:
    """What it says when it ends with an error."""
    for name, value in {**s3.variables, **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RebarError) as refused:
        train_imagenet.main([str(word) for word in words[1:]])
    return str(refused.value)


def test_the_next_machine_goes_on_and_ends_as_an_undisturbed_run(
    s3: S3, data: Data, finished_run: Path, tmp_path: Path
) -> None:
    upload = ["--upload", f"s3://{BUCKET}/some/prefix"]
    first, second = tmp_path / "machine1/mine", tmp_path / "machine2/mine"
    assert disturb(data.training_command(first, *upload), first, 27, send(signal.SIGTERM), **s3.variables) == 75
    stopped = s3.manifest("some/prefix/mine")
    assert stopped["epoch"] == 1
    assert stopped["step"] > 27
    assert_whole(s3, "some/prefix/mine", first)
    assert json.loads(s3.read("some/prefix/mine/status.json"))["exit_code"] == 75

    shutil.rmtree(first)
    done = run(*data.training_command(second, *upload), **s3.variables)
    assert f"fetched   s3://{BUCKET}/some/prefix/mine/checkpoints/" in done.stdout
    assert f"after epoch 1 and {stopped['step'] - 20} steps of the next" in done.stdout
    assert_same_run(second, finished_run)
    assert_whole(s3, "some/prefix/mine", second)
    assert s3.manifest("some/prefix/mine")["step"] == 40
    assert s3.read("some/prefix/mine/report.html") == (second / "report.html").read_bytes()
    assert_no_secret(second, done.stdout, done.stderr)


@pytest.mark.slow
def test_a_folder_that_was_overtaken_is_refused(
    s3: S3, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(machine: str, *words: str) -> list[str | Path]:
        return data.training_command(tmp_path / machine / "run", "--upload", f"s3://{BUCKET}", *words)

    train_here(s3, monkeypatch, *command("a", "--max-steps", "3"))
    train_here(s3, monkeypatch, *command("b", "--max-steps", "6"))
    assert read_events(tmp_path / "b/run", "start")[-1]["epoch"] == 0
    assert [record["step"] for record in read_events(tmp_path / "b/run", "step")] == list(range(6))
    before = s3.manifest("run")
    refused = refusal(s3, monkeypatch, *command("a"))
    assert "is further than" in refused
    assert "to step 6" in refused
    assert "--overwrite" in refusal(s3, monkeypatch, *command("c", "--resume", "none"))
    assert s3.manifest("run") == before
    # Asked for, it is replaced, and nothing of the old one is left.
    train_here(s3, monkeypatch, *command("d", "--resume", "none", "--overwrite", "--max-steps", "2"))
    assert s3.manifest("run")["step"] == 2
    assert_whole(s3, "run", tmp_path / "d/run", "last.pt")


@pytest.mark.slow
def test_begun_from_a_file_another_machine_goes_on_with_the_uploaded_run(
    s3: S3, data: Data, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(machine: str, steps: int, *words: str) -> list[str | Path]:
        words = ("--upload", f"s3://{BUCKET}", "--epochs", "3", "--max-steps", str(steps), *words)
        return data.training_command(tmp_path / machine / "begun", *words)

    begins = ("--resume", str(finished_run / "checkpoints/last.pt"))
    train_here(s3, monkeypatch, *command("a", 3))  # another run: replaced
    train_here(s3, monkeypatch, *command("b", 43, *begins))
    assert s3.manifest("begun")["step"] == 43
    train_here(s3, monkeypatch, *command("c", 44, *begins))
    assert [record["step"] for record in read_events(tmp_path / "c/begun", "step")] == list(range(40, 44))
    assert_whole(s3, "begun", tmp_path / "c/begun", "last.pt")


@pytest.mark.slow
def test_a_damaged_upload_is_noticed_and_the_one_before_it_taken(
    s3: S3, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(machine: str, steps: int) -> list[str | Path]:
        words = ["--upload", f"s3://{BUCKET}", "--max-steps", str(steps)]
        return data.training_command(tmp_path / machine / "damaged", *words)

    train_here(s3, monkeypatch, *command("a", 2))
    train_here(s3, monkeypatch, *command("a", 6))
    named = s3.manifest("damaged")["checkpoints"]
    key = "damaged/" + named["last.pt"]["object"]
    content = bytearray(s3.read(key))
    content[len(content) // 2] ^= 1
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(content))
    train_here(s3, monkeypatch, *command("b", 7))
    assert "its SHA-256 is not the one it was uploaded with: going on without it" in capsys.readouterr().err
    assert s3.manifest("damaged")["step"] == 7
    assert_whole(s3, "damaged", tmp_path / "b/damaged", "last.pt")


@pytest.mark.parametrize(
    ("address", "variables", "message"),
    [
        ("gs://bucket/prefix", {}, "must be s3://bucket"),
        (f"s3://{KEY_ID}:{SECRET}@bucket/prefix", {}, "must be s3://bucket"),
        ("s3://absent/prefix", {}, "S3 answers NoSuchBucket; make the bucket"),
        (f"s3://{BUCKET}", {"AWS_ENDPOINT_URL": f"http://{KEY_ID}:x@127.0.0.1:9"}, "Could not connect"),
        (f"s3://{BUCKET}", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "there are no AWS credentials"),
    ],
)
def test_a_place_that_cannot_be_used_is_told_before_the_first_step(
    address: str,
    variables: dict[str, str],
    message: str,
    s3: S3,
    data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = data.training_command(tmp_path / "run", "--upload", address)
    refused = refusal(s3, monkeypatch, *words, HOME=str(tmp_path), **variables)
    assert message in refused
    assert KEY_ID not in refused
    assert SECRET not in refused
    assert not (tmp_path / "run").exists()
