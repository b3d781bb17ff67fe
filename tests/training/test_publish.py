"""Model cards, and publishing a run on a local Hugging Face Hub through the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

import train_imagenet
from rebar.cli import run_command
from rebar.reporting.run_folder import RunFolder
from rebar.storage.run_store import read_status
from rebar.training import publish
from rebar.training.checkpoint import CheckpointError, read_checkpoint
from rebar.training.publish import ModelFacts, model_card, publish_or_warn
from rebar.training.weights import read_weights
from tests.conftest import TWO_RANKS, Data, read_events, run
from tests.processes import start_ranks
from tests.storage.hub_server import TOKEN, Hub, hub_server

hub_client = pytest.importorskip("huggingface_hub")


FACTS = ModelFacts(
    name="g5_4gpu",
    arch="resnet50",
    parameters=25_557_032,
    num_classes=1000,
    train_images=1_281_167,
    resolution=256,
    metrics={"val/top1": 0.7612, "val/top5": 0.9288, "val/top1_tta": 0.7634, "val/top5_tta": 0.93},
    epochs=16,
    recipe="16 epochs, 160 to 192 px, BlurPool",
    hardware="4 x NVIDIA A10G",
    train_seconds=12_345.0,
    environment={"command": "train_imagenet.py --config-file rn50_configs/g5_4gpu.yaml", "code": ""},
    use_blurpool=True,
    in_torchvision=True,
)


def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}


def test_two_ranks_publish_evaluated_weights_once_without_token(data: Data, tmp_path: Path) -> None:
    folder = tmp_path / "runs/mine"
    args = ["--hf-repo", "owner/mine", "--hf-token", TOKEN, "--use-ema", "--ema-update-every", "1", "--max-steps", "4"]
    command = data.training_command(folder, *args, *TWO_RANKS, "--export", "safetensors", "--wandb")
    with hub_server() as hub:
        ranks = start_ranks(2, command, **environment(hub, tmp_path), WANDB_MODE="offline")
        assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output
        output = "".join(rank.output for rank in ranks)
        assert output.count(f"published {hub.url}/owner/mine") == 1
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
    assert_no_token(tmp_path, *published.values(), output.encode())
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


def assert_no_token(folder: Path, *outputs: bytes) -> None:
    """Check that the token is in no file of the folder and in no output."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path
    assert not any(TOKEN.encode() in content for content in outputs)


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


def test_publish_creates_no_repository_for_a_run_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[str] = []
    monkeypatch.setattr("rebar.training.publish.prepare_repository", created.append)
    with pytest.raises(CheckpointError) as error:
        publish.main([str(tmp_path), "owner/name"])
    assert error.value.code == "checkpoint-not-found"
    assert not created


def test_model_card_is_parsed_by_huggingface_hub() -> None:
    hub = pytest.importorskip("huggingface_hub")
    text = model_card(FACTS, ["model.safetensors", "report.html"])
    results = {result.metric_name: result for result in hub.ModelCard(text).data.eval_results}
    assert results["top-1"].metric_value == 76.12
    assert results["top-1 with flip TTA"].metric_value == 76.34
    assert results["top-1"].dataset_type == "imagenet-1k"
    assert results["top-1"].task_type == "image-classification"
    for part in ("76.12, 92.88", "4 x NVIDIA A10G", "3 h 26 min", "use_blurpool=True", "- `report.html`", "`train_ima"):
        assert part in text
    assert "| code |" not in text


@pytest.mark.parametrize(
    ("use_blurpool", "in_torchvision", "words"),
    [
        (False, True, "torchvision.models.resnet50(num_classes=1000)"),
        (True, False, 'build_model("resnet50", num_classes=1000, use_blurpool=True)'),
        (False, False, 'build_model("resnet50", num_classes=1000)'),
    ],
)
def test_model_card_shows_how_to_build_the_model(use_blurpool: bool, in_torchvision: bool, words: str) -> None:
    text = model_card(replace(FACTS, use_blurpool=use_blurpool, in_torchvision=in_torchvision), [])
    assert f"model = {words}\n" in text
    assert "The model uses BlurPool" not in text


def test_model_card_lists_accuracies_at_other_resolutions() -> None:
    finally_ = {"val/top1_224px": 0.75, "val/top5_224px": 0.92, "val/top1_256px": 0.7612, "val/top5_256px": 0.9288}
    text = model_card(replace(FACTS, metrics={**FACTS.metrics, **finally_}), [])
    assert "| at 224 px | 75.00, 92.00 |" in text
    assert "at 256 px" not in text  # where it is evaluated anyway
    assert "px with flip TTA" not in text


def test_model_card_of_other_data_does_not_name_imagenet() -> None:
    card = yaml.safe_load(model_card(ModelFacts(**{**FACTS.__dict__, "num_classes": 10}), []).split("---\n")[1])
    assert "datasets" not in card
    assert card["model-index"][0]["results"][0]["dataset"]["name"] == "10 classes, 1,281,167 training images"
