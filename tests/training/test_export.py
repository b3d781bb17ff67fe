"""Exported weights, read by the libraries they are for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rebar.errors import RebarError
from rebar.models.resnets import build_model, import_torchvision
from rebar.training.export import check_can_export, export_suffixes, export_weights, read_weights

FACTS = {"arch": "resnet18", "num_classes": 10, "use_blurpool": True}


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_plain_torchvision_model_takes_them(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = tmp_path / name, build_model("resnet18", num_classes=10, use_blurpool=True)
    export_weights(path, torch.nn.DataParallel(model).state_dict(), FACTS)
    plain = import_torchvision().models.resnet18(num_classes=10)
    plain.load_state_dict(read_weights(path))
    assert torch.equal(plain.fc.weight, model.fc.weight)  # type: ignore[arg-type]
    assert ("BlurPool" in capsys.readouterr().err) == (name == "weights.pth")


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    weights = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    files = set()
    for _ in range(12):
        export_weights(tmp_path / "w.safetensors", weights, {"arch": "é"})
        files.add((tmp_path / "w.safetensors").read_bytes())
    assert len(files) == 1
    read = read_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(read[name], value) for name, value in weights.items())


def test_safetensors_says_what_it_is(tmp_path: Path) -> None:
    export_weights(tmp_path / "w.safetensors", {"a": torch.ones(2)}, FACTS)
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["rebar"]) == FACTS
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("none.pth", None, "does not exist"), ("text.pth", b"no weights", "can be read"), ("a.safetensors", b"x", "read")],
)
def test_what_cannot_be_read(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RebarError, match=message):
        read_weights(tmp_path / name)


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RebarError, match=r"end in \.pth"):
        export_weights(tmp_path / "w.h5", {}, FACTS)


def test_forms() -> None:
    assert [export_suffixes(wanted) for wanted in ("none", "torchvision", "both")] == [
        [],
        [".pth"],
        [".pth", ".safetensors"],
    ]
    assert export_suffixes("onnx") == [".onnx"]
    assert export_suffixes("all") == [".pth", ".safetensors", ".onnx"]


@pytest.mark.slow
def test_onnx_gives_the_same_logits_at_any_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path, model = tmp_path / "w.onnx", build_model("resnet18", num_classes=10, use_blurpool=True)
    model.train()(torch.randn(8, 3, 64, 64))  # statistics that are not those at the start
    export_weights(path, model.state_dict(), FACTS)
    assert capfd.readouterr().out == ""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 64, 64), (5, 3, 96, 80)):
        images = torch.randn(shape)
        (logits,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model.eval()(images).detach(), rtol=1e-4, atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["rebar"]) == {"num_classes": 10, **FACTS}


def test_missing_packages_are_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else object())
    with pytest.raises(RebarError, match=r"pip install onnx$"):
        check_can_export("all")
    check_can_export("both")
