"""Training with ``--upload``, through the command line: uploads to a moto server, and resuming on other machines."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import train_imagenet
from rebar.errors import RebarError
from tests.conftest import Data, read_events
from tests.processes import interrupt, send, start
from tests.test_resume import assert_same_run
from tests.training.s3_server import BUCKET, KEY_ID, S3, SECRET, s3_server

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


def assert_uploaded(s3: S3, run_name: str, folder: Path, *names: str, kept: str = "") -> None:
    """Check that S3 has the checkpoints that the manifest names, and that they equal the folder's.

    S3 must have no other checkpoint than the object ``kept``.
    """
    manifest = s3.manifest(run_name)
    objects = {stored["object"] for stored in manifest["checkpoints"].values()} | ({kept} if kept else set())
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


def train_here(s3: S3, monkeypatch: pytest.MonkeyPatch, *args: str | Path) -> None:
    """Run the command in this process."""
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    train_imagenet.main([str(arg) for arg in args[1:]])


def error_of(s3: S3, monkeypatch: pytest.MonkeyPatch, *args: str | Path, **variables: str) -> tuple[str, str]:
    """Run a command that fails; return the code and the message of its error."""
    for name, value in {**s3.variables, **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RebarError) as error:
        train_imagenet.main([str(arg) for arg in args[1:]])
    return error.value.code, str(error.value)


def test_resume_on_the_next_machine_gives_identical_results(
    s3: S3, data: Data, finished_run: Path, tmp_path: Path
) -> None:
    upload = ["--upload", f"s3://{BUCKET}/some/prefix"]
    first, second = tmp_path / "machine1/mine", tmp_path / "machine2/mine"
    assert interrupt(data.training_command(first, *upload), first, 22, send(signal.SIGTERM), **s3.variables) == 75
    stopped = s3.manifest("some/prefix/mine")
    assert stopped["epoch"] == 1
    assert stopped["step"] > 22
    assert_uploaded(s3, "some/prefix/mine", first)
    assert json.loads(s3.read("some/prefix/mine/status.json"))["exit_code"] == 75

    shutil.rmtree(first)
    resumed = start(data.training_command(second, *upload), **s3.variables)
    assert resumed.wait() == 0, resumed.output
    assert f"fetched   s3://{BUCKET}/some/prefix/mine/checkpoints/" in resumed.output
    assert f"after {stopped['step'] - 20} of 20 steps of epoch 2" in resumed.output
    assert_same_run(second, finished_run)
    assert_uploaded(s3, "some/prefix/mine", second)
    assert s3.manifest("some/prefix/mine")["step"] == 40
    assert s3.read("some/prefix/mine/report.html") == (second / "report.html").read_bytes()
    assert_no_secret(second, resumed.output)


def test_upload_rejects_a_run_that_another_machine_continued(
    s3: S3, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(machine: str, *args: str) -> list[str | Path]:
        return data.training_command(tmp_path / machine / "run", "--upload", f"s3://{BUCKET}", *args)

    train_here(s3, monkeypatch, *command("a", "--max-steps", "3"))
    train_here(s3, monkeypatch, *command("b", "--max-steps", "6"))
    assert read_events(tmp_path / "b/run", "start")[-1]["epoch"] == 0
    assert [record["step"] for record in read_events(tmp_path / "b/run", "step")] == list(range(6))
    before = s3.manifest("run")
    code, message = error_of(s3, monkeypatch, *command("a"))
    assert code == "run-continued-elsewhere"
    assert "step 6" in message
    assert error_of(s3, monkeypatch, *command("c", "--resume", "none"))[0] == "run-exists"
    assert s3.manifest("run") == before
    # With --overwrite, it is replaced completely.
    train_here(s3, monkeypatch, *command("d", "--resume", "none", "--overwrite", "--max-steps", "2"))
    assert s3.manifest("run")["step"] == 2
    assert_uploaded(s3, "run", tmp_path / "d/run", "last.pt")


def test_resume_from_a_file_continues_the_uploaded_run_on_another_machine(
    s3: S3, data: Data, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(machine: str, steps: int, *args: str) -> list[str | Path]:
        args = ("--upload", f"s3://{BUCKET}", "--epochs", "3", "--max-steps", str(steps), *args)
        return data.training_command(tmp_path / machine / "begun", *args)

    begins = ("--resume", str(finished_run / "checkpoints/last.pt"))
    train_here(s3, monkeypatch, *command("a", 3))  # another run: replaced
    train_here(s3, monkeypatch, *command("b", 43, *begins))
    assert s3.manifest("begun")["step"] == 43
    train_here(s3, monkeypatch, *command("c", 44, *begins))
    assert [record["step"] for record in read_events(tmp_path / "c/begun", "step")] == list(range(40, 44))
    assert_uploaded(s3, "begun", tmp_path / "c/begun", "last.pt")


def test_resume_uses_the_previous_checkpoint_if_the_uploaded_one_is_damaged(
    s3: S3, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(machine: str, steps: int) -> list[str | Path]:
        args = ["--upload", f"s3://{BUCKET}", "--max-steps", str(steps)]
        return data.training_command(tmp_path / machine / "damaged", *args)

    train_here(s3, monkeypatch, *command("a", 2))
    train_here(s3, monkeypatch, *command("a", 6))
    named = s3.manifest("damaged")["checkpoints"]
    damaged = named["last.pt"]["object"]
    key = f"damaged/{damaged}"
    content = bytearray(s3.read(key))
    content[len(content) // 2] ^= 1
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(content))
    train_here(s3, monkeypatch, *command("b", 7))
    assert "The previous checkpoint is used" in capsys.readouterr().err
    assert s3.manifest("damaged")["step"] == 7
    assert_uploaded(s3, "damaged", tmp_path / "b/damaged", "last.pt", kept=damaged)


@pytest.mark.parametrize(
    ("address", "variables", "code"),
    [
        ("gs://bucket/prefix", {}, "s3-invalid-url"),
        (f"s3://{KEY_ID}:{SECRET}@bucket/prefix", {}, "s3-invalid-url"),
        ("s3://absent/prefix", {}, "aws-request-refused"),
        (f"s3://{BUCKET}", {"AWS_ENDPOINT_URL": f"http://{KEY_ID}:x@127.0.0.1:9"}, "aws-unreachable"),
        (f"s3://{BUCKET}", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "aws-credentials-missing"),
    ],
)
def test_upload_to_an_unusable_address_fails_before_the_first_step(
    address: str,
    variables: dict[str, str],
    code: str,
    s3: S3,
    data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = data.training_command(tmp_path / "run", "--upload", address)
    error = error_of(s3, monkeypatch, *args, HOME=str(tmp_path), **variables)
    assert error[0] == code
    assert KEY_ID not in error[1]
    assert SECRET not in error[1]
    assert not (tmp_path / "run").exists()
