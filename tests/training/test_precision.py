"""Which precision a run uses, where."""

import pytest
import torch

from rebar.training.execution import Precision, autocast, gradient_scaler, input_dtype, resolve_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("asked", "device", "used"),
    [
        ("auto", CPU, "32"),
        ("32", CPU, "32"),
        ("bf16", CPU, "bf16"),
        ("auto", GPU, "fp16"),
        ("32", GPU, "32"),
        ("fp16", GPU, "fp16"),
    ],
)
def test_what_is_used(
    asked: Precision, device: torch.device, used: Precision, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolve_precision(asked, device) == used
    assert capsys.readouterr().err == ""


def test_half_precision_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert resolve_precision("fp16", CPU) == "32"
    assert "fp16 needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("capability", "warned"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_bf16_on_an_old_gpu_is_warned_of(
    capability: tuple[int, int], warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert resolve_precision("bf16", GPU) == "bf16"
    assert ("Tesla T4 has no fast bf16" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast(precision: Precision, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_only_half_precision_is_scaled() -> None:
    scalers = {precision: gradient_scaler(precision, CPU) for precision in ("32", "bf16", "fp16")}
    assert {precision: scaler.is_enabled() for precision, scaler in scalers.items()} == {
        "32": False,
        "bf16": False,
        "fp16": True,
    }


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_images_in_the_networks_own_type_give_the_same(precision: Precision) -> None:
    torch.manual_seed(0)
    convolution, images = torch.nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    with autocast(precision, CPU):
        assert torch.equal(convolution(images.to(input_dtype(precision))), convolution(images))
