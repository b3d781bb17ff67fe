"""Weights of torchvision, timm, ffcv-imagenet and Lightning are read. torchvision and ONNX Runtime read exports."""

import argparse
import json
import os
import types
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import nn

from rebar.errors import RebarError
from rebar.models.build import build_model
from rebar.training.checkpoint import VERSION
from rebar.training.weights import check_export_format, export_suffixes, export_weights, read_weights

WEIGHTS = {
    "conv1.weight": torch.ones(2, 3),
    "layer1.0.bn1.num_batches_tracked": torch.tensor(7),
    "fc.bias": torch.ones(2),
}
AVERAGE = {name: value + 1 for name, value in WEIGHTS.items()}
ARGS = argparse.Namespace(lr=0.1, model="resnet18", betas=[0.9, 0.99], path=Path("/data"))


def prefixed(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in weights.items()}


class AttributeDict(dict[str, Any]):
    """Stands for Lightning's class of the same name."""


CHECKPOINTS: dict[str, Any] = {
    "plain": WEIGHTS,
    "DDP": OrderedDict(prefixed("module.", WEIGHTS)),
    "compiled DDP": prefixed("module._orig_mod.", WEIGHTS),
    "torchvision": {"model": WEIGHTS, "optimizer": {"state": {}}, "lr_scheduler": {}, "epoch": 3, "args": ARGS},
    "timm": {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": WEIGHTS,
        "optimizer": defaultdict(dict, a=1),
        "version": VERSION,
        "args": ARGS,
        "metric": np.float64(70.1),
        "rank": np.array([1, 2]),
    },
    "Lightning": {
        "state_dict": {**prefixed("model.", WEIGHTS), "accuracy.total": torch.tensor(3), "loss.weight": torch.ones(2)},
        "hyper_parameters": AttributeDict(lr=0.1, norm=nn.BatchNorm2d),
        "callbacks": {"checkpoint": {"dirpath": Path("/runs"), "args": types.SimpleNamespace(a=[1])}},
    },
}
AVERAGED: dict[str, Any] = {
    "torchvision": {
        "model": WEIGHTS,
        "args": ARGS,
        "model_ema": {"n_averaged": torch.tensor(5), **prefixed("module.", AVERAGE)},
    },
    "timm": {"state_dict": WEIGHTS, "state_dict_ema": AVERAGE, "args": ARGS},
}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_read_weights_finds_the_state_dict(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(CHECKPOINTS[name], tmp_path / "w.pth")
    read = read_weights(tmp_path / "w.pth")
    assert_equal(read.tensors, WEIGHTS)
    assert not read.use_blurpool
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", AVERAGED)
def test_read_weights_prefers_the_average_with_a_notice(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(AVERAGED[name], tmp_path / "w.pth")
    assert_equal(read_weights(tmp_path / "w.pth").tensors, AVERAGE)
    assert "_ema" in capsys.readouterr().err


def test_read_weights_reads_files_of_torch_before_1_6(tmp_path: Path) -> None:
    torch.save(
        CHECKPOINTS["torchvision"] | {"args": argparse.Namespace(lr=1)},
        tmp_path / "w.pth",
        _use_new_zipfile_serialization=False,
    )
    assert_equal(read_weights(tmp_path / "w.pth").tensors, WEIGHTS)


class FfcvBlurPool(nn.Module):
    """The layer of ffcv-imagenet's train_imagenet.py."""

    blur_filter: torch.Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel = torch.tensor([[[[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]]]) / 16
        self.conv = conv
        self.register_buffer("blur_filter", kernel.repeat(conv.in_channels, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blurred = nn.functional.conv2d(x, self.blur_filter, padding=1, groups=self.conv.in_channels)
        convolved: torch.Tensor = self.conv(blurred)
        return convolved


def apply_ffcv_blurpool(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(module, name, FfcvBlurPool(child))
        else:
            apply_ffcv_blurpool(child)


def test_blurpool_model_of_ffcv_imagenet_gives_the_same_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = build_model("resnet18", num_classes=3, use_blurpool=False)
    apply_ffcv_blurpool(theirs)
    torch.save(nn.DataParallel(theirs).state_dict(), tmp_path / "final_weights.pt")
    read = read_weights(tmp_path / "final_weights.pt")
    assert read.use_blurpool
    ours = build_model("resnet18", num_classes=3, use_blurpool=True)
    ours.load_state_dict(read.tensors)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


class Command:
    """Runs a command when it is unpickled without restrictions."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> Any:
        return self.reduced


def test_read_weights_runs_no_code_of_the_file(tmp_path: Path) -> None:
    created = tmp_path / "created"
    torch.save({"model": WEIGHTS, "a": Command(os.mkdir, str(created))}, tmp_path / "os.pth")
    torch.save({"model": WEIGHTS, "a": Command(eval, f"open({str(created)!r}, 'w')")}, tmp_path / "eval.pth")
    with pytest.raises(RebarError) as caught:
        read_weights(tmp_path / "os.pth")  # torch blocks some modules altogether
    assert caught.value.code == "weights-invalid"
    assert_equal(read_weights(tmp_path / "eval.pth").tensors, WEIGHTS)
    assert not created.exists()


def test_architecture_stored_in_the_file_is_used_unless_it_is_code_to_import(tmp_path: Path) -> None:
    for arch, expected in (("resnet18", "resnet18"), ("os:_exit", "")):
        export_weights(tmp_path / "w.safetensors", WEIGHTS, {"arch": arch})
        assert read_weights(tmp_path / "w.safetensors").arch == expected


@pytest.mark.parametrize(
    "content",
    [nn.Linear(2, 2), {"model": nn.Linear(2, 2)}, {}, [1], {"a": 1}],
    ids=["module", "nested", "empty", "list", "numbers"],
)
def test_read_weights_reports_files_without_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(RebarError) as caught:
        read_weights(tmp_path / "w.pth")
    assert caught.value.code == "weights-invalid"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("none.pth", None, "weights-not-found"),
        ("text.pth", b"no weights", "weights-invalid"),
        ("a.safetensors", b"x", "weights-invalid"),
    ],
)
def test_read_weights_reports_missing_or_damaged_file(
    name: str, content: bytes | None, code: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RebarError, match=name) as caught:
        read_weights(tmp_path / name)
    assert caught.value.code == code


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
