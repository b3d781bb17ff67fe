"""Tests of rebar.training.checkpoint."""

import argparse
import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from rebar.training.checkpoint import (
    VERSION,
    CheckpointError,
    HostMemory,
    keep_copies,
    plain_names,
    read_checkpoint,
    save_checkpoint,
    torch_save,
)
from tests.conftest import mounted_tmpfs

CONTENT: dict[str, Any] = {
    "epoch": 3,
    "config": {"lr.lr": 0.5, "data.train_dataset": "train.beton", "logging.wandb": False},
    "class_names": ["hen", "ostrich"],
    "model": {"weight": torch.arange(12.0).view(3, 4), "steps": torch.tensor(7)},
    "metrics": {"val/top1": 0.25, "val/top1_tta": None},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    save_checkpoint(path, CONTENT)
    return path


def test_read_checkpoint_returns_the_saved_content(saved: Path) -> None:
    content = read_checkpoint(saved)
    assert {name: content[name] for name in CONTENT if name != "model"} == {
        name: value for name, value in CONTENT.items() if name != "model"
    }
    assert all(torch.equal(content["model"][name], value) for name, value in CONTENT["model"].items())
    assert [path.name for path in saved.parent.iterdir()] == ["last.pt"]


def test_save_checkpoint_keeps_the_replaced_file_as_previous(saved: Path) -> None:
    save_checkpoint(saved, {"epoch": 4})
    assert read_checkpoint(saved)["epoch"] == 4
    assert read_checkpoint(saved.with_name("previous.pt"))["epoch"] == 3
    assert sorted(path.name for path in saved.parent.iterdir()) == ["last.pt", "previous.pt"]


# ------------------------------------------------------------------ reading invalid files


def assert_rejected(path: Path, code: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert error.value.code == code
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_read_checkpoint_rejects_a_missing_file(tmp_path: Path) -> None:
    assert_rejected(tmp_path / "none.pt", "checkpoint-not-found")


def test_read_checkpoint_rejects_a_folder(tmp_path: Path) -> None:
    assert_rejected(tmp_path, "checkpoint-not-found")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_read_checkpoint_rejects_a_truncated_file(kept: float, saved: Path) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    assert_rejected(saved, "checkpoint-damaged")


def test_read_checkpoint_rejects_changed_weights(saved: Path) -> None:
    content = saved.read_bytes()
    weights = CONTENT["model"]["weight"].numpy().tobytes()
    assert content.count(weights) == 1
    saved.write_bytes(content.replace(weights, weights[:-1] + b"?"))
    assert_rejected(saved, "checkpoint-damaged")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(b"epochs: 16\n", "checkpoint-invalid", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), "checkpoint-invalid", id="png"),
        pytest.param(bytes(5000), "checkpoint-damaged", id="zeros"),  # as after a power failure
    ],
)
def test_read_checkpoint_rejects_other_kinds_of_files(content: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    assert_rejected(path, code)


@pytest.mark.parametrize(
    "content",
    [{"weight": torch.ones(3)}, [1, 2], torch.ones(3), {"format": "other"}, {"args": argparse.Namespace(lr=1)}],
    ids=["weights", "list", "tensor", "format", "namespace"],
)
def test_read_checkpoint_rejects_other_torch_files(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    assert_rejected(tmp_path / "weights.pt", "checkpoint-invalid")


def test_read_checkpoint_rejects_another_version(tmp_path: Path) -> None:
    torch.save({"format": "rebar-checkpoint", "version": 99}, tmp_path / "future.pt")
    assert_rejected(tmp_path / "future.pt", "checkpoint-version")


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_read_checkpoint_executes_no_code(plain_pickle: bool, tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.pt", tmp_path / "was_run"
    content = {"format": "rebar-checkpoint", "version": VERSION, "model": Malicious(proof)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    assert_rejected(path, "checkpoint-invalid")
    assert not proof.exists()


# ------------------------------------------------------------------ writing


def test_keep_copies_keeps_the_best_and_every_nth(saved: Path) -> None:
    for epoch, is_best in ((1, True), (2, False), (3, True), (4, False)):
        save_checkpoint(saved, {"epoch": epoch})
        keep_copies(saved, epoch=epoch, is_best=is_best, keep_every=2)
    kept = {path.name: read_checkpoint(path)["epoch"] for path in saved.parent.iterdir()}
    assert kept == {"last.pt": 4, "previous.pt": 3, "best.pt": 3, "epoch_002.pt": 2, "epoch_004.pt": 4}


def test_plain_names_removes_the_prefixes_of_wrappers() -> None:
    names = ["module.conv1.weight", "_orig_mod.module.fc.bias", "layer1.0._orig_mod.bn1.weight", "fc.weight"]
    assert list(plain_names({name: torch.ones(1) for name in names})) == [
        "conv1.weight",
        "fc.bias",
        "layer1.0.bn1.weight",
        "fc.weight",
    ]


def test_save_checkpoint_deletes_the_previous_one_on_a_full_disk(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "disk", megabytes=5) as disk:
        last, weights = disk / "last.pt", torch.zeros(500_000)  # 2 MB
        for epoch in range(4):  # three do not fit
            save_checkpoint(last, {"epoch": epoch, "model": weights})
        assert read_checkpoint(last)["epoch"] == 3
        with pytest.raises(CheckpointError) as error:
            save_checkpoint(last, {"epoch": 4, "model": torch.zeros(1_000_000)})
        assert error.value.code == "disk-full"
        assert read_checkpoint(last)["epoch"] == 3
        assert [path.name for path in disk.iterdir()] == ["last.pt"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full"),
        (OSError(errno.EIO, "Input/output error"), "checkpoint-not-writable"),
        (RuntimeError("PytorchStreamWriter failed writing file"), "checkpoint-not-writable"),
    ],
)
def test_failed_write_leaves_the_earlier_checkpoint(
    error: Exception, code: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_save(content: object, file: Any) -> None:
        file.write(b"the first half")
        raise error

    save_checkpoint(saved, {"epoch": 4})
    monkeypatch.setattr(torch, "save", failing_save)
    with pytest.raises(CheckpointError) as raised:
        save_checkpoint(saved, {"epoch": 5})
    assert raised.value.code == code
    monkeypatch.undo()
    assert read_checkpoint(saved)["epoch"] == 4
    kept = ["last.pt"] if code == "disk-full" else ["last.pt", "previous.pt"]
    assert sorted(path.name for path in saved.parent.iterdir()) == kept


def test_full_disk_is_reported_in_place_of_torchs_assertion(tmp_path: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        torch_save({"model": torch.zeros(100_000)}, full)  # type: ignore[arg-type]


def test_kill_while_writing_leaves_the_earlier_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted_save(content: object, file: Any) -> None:
        file.write(b"the first half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted_save)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, {"epoch": 4})
    monkeypatch.undo()
    assert read_checkpoint(saved)["epoch"] == 3
    save_checkpoint(saved, {"epoch": 5})
    assert read_checkpoint(saved)["epoch"] == 5
    assert sorted(path.name for path in saved.parent.iterdir()) == ["last.pt", "previous.pt"]


def test_save_checkpoint_rejects_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(tmp_path / "gone/last.pt", CONTENT)
    assert error.value.code == "checkpoint-not-writable"


# ------------------------------------------------------------------ host memory


def test_host_memory_copy_is_independent() -> None:
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


def test_host_memory_copies_parameters_as_tensors() -> None:
    copy = HostMemory().copy([torch.nn.Parameter(torch.ones(2))])
    assert not copy[0].requires_grad


def test_host_memory_is_reused_for_tensors_of_the_same_layout() -> None:
    memory, weights = HostMemory(), [torch.zeros(3), torch.zeros(2, 2), torch.zeros(4)]
    first = memory.copy(weights)
    weights[1] = torch.ones(5)
    second = memory.copy([weight + 1 for weight in weights])
    assert [a.data_ptr() == b.data_ptr() for a, b in zip(first, second, strict=True)] == [True, False, True]
    assert [copy.tolist() for copy in second] == [[1.0] * 3, [2.0] * 5, [1.0] * 4]
    assert memory.copy({"fewer": torch.ones(3)})["fewer"].tolist() == [1.0] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_host_memory_for_gpu_tensors_is_pinned() -> None:
    weights = [torch.full((1 << 20,), float(number), device="cuda") for number in range(20)]
    copies = HostMemory().copy(weights)
    for weight in weights:
        weight.fill_(-1)
    assert all(copy.is_pinned() for copy in copies)
    assert [copy.unique().tolist() for copy in copies] == [[float(number)] for number in range(20)]
