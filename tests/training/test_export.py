"""Exported weights, read by torchvision, safetensors and ONNX Runtime."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors import safe_open

from rebar.errors import RebarError
from rebar.models.build import build_model
from rebar.training.export import check_export_format, export_suffixes, export_weights
from rebar.training.weights import read_weights

METADATA = {"arch": "resnet18", "num_classes": 10, "use_blurpool": True, "mean": [0.1, 0.2, 0.3], "std": [0.4] * 3}


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_torchvision_loads_exported_weights(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = tmp_path / name, build_model("resnet18", num_classes=10, use_blurpool=True)
    export_weights(path, torch.nn.DataParallel(model).state_dict(), METADATA)
    plain = torchvision.models.resnet18(num_classes=10)
    read = read_weights(path)
    plain.load_state_dict(read.tensors)
    has_metadata = name == "weights.safetensors"
    assert read.use_blurpool == has_metadata
    assert (list(read.mean) == METADATA["mean"]) == has_metadata
    assert torch.equal(plain.fc.weight, model.fc.weight)  # type: ignore[arg-type]
    assert ("BlurPool" in capsys.readouterr().err) == (name == "weights.pth")


def test_safetensors_export_is_deterministic(tmp_path: Path) -> None:
    weights = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    files = set()
    for _ in range(6):
        export_weights(tmp_path / "w.safetensors", weights, {"arch": "é"})
        files.add((tmp_path / "w.safetensors").read_bytes())
    assert len(files) == 1
    read = read_weights(tmp_path / "w.safetensors").tensors
    assert all(torch.equal(read[name], value) for name, value in weights.items())


def test_safetensors_export_contains_metadata(tmp_path: Path) -> None:
    export_weights(tmp_path / "w.safetensors", {"a": torch.ones(2)}, METADATA)
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["rebar"]) == METADATA
        assert file.metadata()["format"] == "pt"


def test_export_weights_rejects_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(RebarError) as caught:
        export_weights(tmp_path / "w.h5", {}, METADATA)
    assert caught.value.code == "export-unknown-format"


def test_export_suffixes() -> None:
    assert [export_suffixes(formats) for formats in ("none", "torchvision", "both")] == [
        [],
        [".pth"],
        [".pth", ".safetensors"],
    ]
    assert export_suffixes("onnx") == [".onnx"]
    assert export_suffixes("all") == [".pth", ".safetensors", ".onnx"]


@pytest.mark.nightly
def test_onnx_export_gives_same_logits_at_any_resolution(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path, model = tmp_path / "w.onnx", build_model("resnet20", num_classes=10, use_blurpool=True)
    model.train()(torch.randn(8, 3, 64, 64))  # changes the BatchNorm statistics
    metadata = METADATA | {"arch": "resnet20"}
    export_weights(path, model.state_dict(), metadata)
    assert capfd.readouterr().out == ""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 64, 64), (5, 3, 96, 80)):
        images = torch.randn(shape)
        (logits,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model.eval()(images).detach(), rtol=1e-4, atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["rebar"]) == metadata


def test_check_export_format_reports_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else object())
    with pytest.raises(RebarError, match="pip install onnx'") as caught:
        check_export_format(".onnx")
    assert caught.value.code == "export-package-missing"
    check_export_format(".safetensors")
