"""Model cards, and uploads to a Hub over HTTP."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rebar.reporting.model_card import ModelFacts, model_card
from rebar.storage.huggingface import HubError, prepare_repository, upload_files
from tests.storage.hub_server import TOKEN, Hub, hub_server

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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


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


def test_upload_files_makes_one_commit(hub: Hub, tmp_path: Path) -> None:
    weights = tmp_path / "w"
    weights.write_bytes(bytes(range(256)) * 4000)
    prepare_repository("owner/model")
    prepare_repository("owner/model")  # it exists
    card = model_card(FACTS, []).encode()
    url = upload_files("owner/model", {"model.safetensors": weights, "README.md": card}, "first")
    assert url == f"{hub.url}/owner/model"
    assert hub.repositories == {"owner/model": {"model.safetensors": weights.read_bytes(), "README.md": card}}
    assert hub.messages == ["first"]


@pytest.mark.parametrize(
    ("repository", "token", "code", "status"),
    [
        ("owner/model", "hf_wrong", "hf-request-refused", "HTTP 401"),
        ("somebody/model", TOKEN, "hf-request-refused", "HTTP 403"),
        ("owner/model", "", "hf-token-missing", ""),
        ("a/b/c", TOKEN, "hf-unreachable", "a/b/c"),
    ],
)
def test_prepare_repository_reports_refusals_without_the_token(
    repository: str, token: str, code: str, status: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError) as refused:
        prepare_repository(repository)
    assert refused.value.code == code
    assert status in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not token or token not in str(refused.value)


def test_upload_files_to_a_missing_repository(hub: Hub) -> None:
    with pytest.raises(HubError, match="HTTP 404"):
        upload_files("owner/absent", {"a.txt": b"a"}, "first")


def test_prepare_repository_without_a_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="owner/model") as refused:
        prepare_repository("owner/model")
    assert refused.value.code == "hf-unreachable"


def test_prepare_repository_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match="pip install") as refused:
        prepare_repository("owner/model")
    assert refused.value.code == "hf-not-installed"
