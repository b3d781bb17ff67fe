"""Publishing a run on a local Hugging Face Hub, through the command line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import train_imagenet
from rebar.cli import run_command
from rebar.reporting.run_folder import RunFolder
from rebar.storage.run_records import read_status
from rebar.training.checkpoint import read_checkpoint
from rebar.training.publish import publish_or_warn
from rebar.training.weights import read_weights
from tests.conftest import Data, read_events, run
from tests.processes import start, start_ranks
from tests.storage.hub_server import TOKEN, Hub, hub_server

hub_client = pytest.importorskip("huggingface_hub")


def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}


def test_run_publishes_evaluated_weights_without_token(data: Data, tmp_path: Path) -> None:
    folder = tmp_path / "runs/mine"
    args = ["--hf-repo", "owner/mine", "--hf-token", TOKEN, "--use-ema", "--ema-update-every", "1", "--max-steps", "4"]
    command = data.training_command(folder, *args, "--export", "safetensors", "--wandb")
    with hub_server() as hub:
        process = start(command, **environment(hub, tmp_path), WANDB_MODE="offline")
        assert process.wait() == 0, process.output
        assert f"published {hub.url}/owner/mine" in process.output
        published = hub.repositories["owner/mine"]
        variables = environment(hub, tmp_path) | {"HF_TOKEN": TOKEN}
        again = run("-m", "rebar.training.publish", folder, "owner/again", **variables)
        assert again.stdout == f"published {hub.url}/owner/again\n"
        assert hub.repositories["owner/again"]["model.safetensors"] == published["model.safetensors"]

    (tmp_path / "model.safetensors").write_bytes(published["model.safetensors"])
    checkpoint = read_checkpoint(folder / "checkpoints/last.pt")
    average, last = checkpoint["average"]["model"], checkpoint["model"]
    for path in (tmp_path / "model.safetensors", folder / "weights.safetensors"):
        weights = read_weights(path).tensors
        assert all(torch.equal(weights[name], average[name]) for name in average)
        assert not torch.equal(weights["fc.weight"], last["fc.weight"])
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["rebar"])["class_names"] == checkpoint["class_names"]

    logged = read_events(folder, "epoch")[-1]["val/top1"]
    (result, *_) = hub_client.ModelCard(published["README.md"].decode()).data.eval_results
    assert result.metric_value == pytest.approx(100 * logged, abs=1e-3)
    for name in ("config.yaml", "log.jsonl"):
        assert published[name] == (folder / name).read_bytes()
    assert b"<svg" in published["report.html"]
    assert b">finished: training.max_steps 4," in published["report.html"]
    assert published["report.html"] == (folder / "report.html").read_bytes()
    assert_no_token(tmp_path, *published.values(), process.output.encode())


def assert_no_token(folder: Path, *outputs: bytes) -> None:
    """Check that the token is in no file of the folder and in no output."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path
    assert not any(TOKEN.encode() in content for content in outputs)


def test_two_ranks_publish_once_without_token(data: Data, tmp_path: Path) -> None:
    args = ["--hf-repo", "owner/mine", "--hf-token", TOKEN, "--training.batch_size", "8", "--max-steps", "2"]
    with hub_server() as hub:
        ranks = start_ranks(2, data.training_command(tmp_path / "run", *args), **environment(hub, tmp_path))
        assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output
        published = hub.repositories["owner/mine"]
    outputs = [rank.output for rank in ranks]
    assert "".join(outputs).count(f"published {hub.url}/owner/mine") == 1
    assert b">finished: training.max_steps 2," in published["report.html"]
    assert_no_token(tmp_path, *published.values(), *(output.encode() for output in outputs))


def test_invalid_token_is_reported_before_training(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = data.training_command(tmp_path / "run", "--hf-repo", "owner/mine", "--hf-token", "hf_wrong")
    monkeypatch.setattr("sys.argv", [str(arg) for arg in args])
    with hub_server() as hub:
        for name, value in environment(hub, tmp_path).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as exit_:
            run_command(train_imagenet.main)
    shown = capsys.readouterr()
    assert exit_.value.code == 1
    assert "HTTP 401" in shown.err
    assert "hf_wrong" not in shown.out + shown.err
    assert not (tmp_path / "run").exists()


def test_failures_after_training_are_warnings_with_a_command(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("damaged installation")

    for name in ("plot_run", "write_report", "publish_run", "export_weights"):
        monkeypatch.setattr(f"rebar.training.publish.{name}", fail)
    monkeypatch.setattr("rebar.training.build.prepare_repository", lambda repository: None)
    args = ["--epochs", "1", "--export", "torchvision", "--hf-repo", "owner/mine"]
    folder = tmp_path / "my run"
    train_imagenet.main([str(word) for word in data.training_command(folder, *args)[1:]])
    status = read_status(RunFolder(folder).status)
    assert status is not None
    assert (status.state, status.exit_code) == ("finished", 0)
    shown = capsys.readouterr().err
    quoted = f"'{folder}'"
    for command in (
        f"evaluate.py --checkpoint {quoted} --data VAL.beton --export '{folder}/weights.pth'",
        f"rebar.reporting.plots {quoted}",
        f"rebar.reporting {quoted}",
        f"rebar.training.publish {quoted} owner/mine",
    ):
        assert shown.count(f"python {'-m ' if command.startswith('rebar') else ''}{command}\n") == 1


def test_publish_or_warn_turns_error_into_warning(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    publish_or_warn(RunFolder(finished_run), "owner/mine")
    warning = capsys.readouterr().err
    assert f"python -m rebar.training.publish {finished_run} owner/mine" in warning
