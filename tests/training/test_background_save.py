"""What is copied is its own; the thread's work is tested through tests/training/test_control.py."""

import pytest
import torch

from rebar.training.checkpoint import HostMemory


def test_a_copy_shares_nothing_that_changes() -> None:
    weight = torch.arange(6.0).view(2, 3).t()
    content = {"model": {"weight": weight}, "groups": [{"lr": 0.1, "betas": (0.9, 0.95)}], "arch": "tiny", "no": None}
    copy = HostMemory().copy(content)
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
    copy = HostMemory().copy([torch.nn.Parameter(torch.ones(2))])
    assert not copy[0].requires_grad


def test_the_same_memory_takes_the_next_copy_where_it_fits() -> None:
    memory, weights = HostMemory(), [torch.zeros(3), torch.zeros(2, 2), torch.zeros(4)]
    first = memory.copy(weights)
    weights[1] = torch.ones(5)
    second = memory.copy([weight + 1 for weight in weights])
    assert [a.data_ptr() == b.data_ptr() for a, b in zip(first, second, strict=True)] == [True, False, True]
    assert [copy.tolist() for copy in second] == [[1.0] * 3, [2.0] * 5, [1.0] * 4]
    assert memory.copy({"fewer": torch.ones(3)})["fewer"].tolist() == [1.0] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_from_a_gpu_it_comes_to_pinned_memory() -> None:
    weights = [torch.full((1 << 20,), float(number), device="cuda") for number in range(20)]
    copies = HostMemory().copy(weights)
    for weight in weights:
        weight.fill_(-1)
    assert all(copy.is_pinned() for copy in copies)
    assert [copy.unique().tolist() for copy in copies] == [[float(number)] for number in range(20)]
