"""What is copied is its own; the thread's work is tested through tests/training/test_control.py."""

import pytest
import torch

from rebar.training.background_save import host_copy


def test_a_copy_shares_nothing_that_changes() -> None:
    weight = torch.arange(6.0).view(2, 3).t()
    content = {"model": {"weight": weight}, "groups": [{"lr": 0.1, "betas": (0.9, 0.95)}], "arch": "tiny", "no": None}
    copy = host_copy(content)
    assert copy["model"]["weight"].stride() == weight.stride()
    weight.zero_()
    content["groups"][0]["lr"] = 0.2  # type: ignore[index]
    assert copy["model"]["weight"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert {**copy, "model": 0} == {
        "model": 0,
        "groups": [{"lr": 0.1, "betas": (0.9, 0.95)}],
        "arch": "tiny",
        "no": None,
    }


def test_a_parameter_is_copied_as_a_plain_tensor() -> None:
    copy = host_copy([torch.nn.Parameter(torch.ones(2))])
    assert not copy[0].requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_from_a_gpu_it_comes_to_pinned_memory() -> None:
    weights = [torch.full((1 << 20,), float(number), device="cuda") for number in range(20)]
    copies = host_copy(weights)
    for weight in weights:
        weight.fill_(-1)
    assert all(copy.is_pinned() for copy in copies)
    assert [copy.unique().tolist() for copy in copies] == [[float(number)] for number in range(20)]
