"""A checkpoint is the whole old one or the whole new one, and only a checkpoint is read as one."""

import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from rebar.training.checkpoint import CheckpointError, keep_copies, plain_names, read_checkpoint, save_checkpoint

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


def test_what_is_saved_is_read(saved: Path) -> None:
    content = read_checkpoint(saved)
    assert {name: content[name] for name in CONTENT if name != "model"} == {
        name: value for name, value in CONTENT.items() if name != "model"
    }
    assert all(torch.equal(content["model"][name], value) for name, value in CONTENT["model"].items())
    assert [path.name for path in saved.parent.iterdir()] == ["last.pt"]


def test_a_later_one_replaces_the_earlier(saved: Path) -> None:
    save_checkpoint(saved, {"epoch": 4})
    assert read_checkpoint(saved)["epoch"] == 4
    assert read_checkpoint(saved.with_name("previous.pt"))["epoch"] == 3
    assert sorted(path.name for path in saved.parent.iterdir()) == ["last.pt", "previous.pt"]


# ------------------------------------------------------------------ reading what is none


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.pt", "does not exist")


def test_a_folder(tmp_path: Path) -> None:
    assert_refused(tmp_path, "is a folder")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_a_file_cut_short(kept: float, saved: Path) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    assert_refused(saved, "is damaged or no checkpoint")


def test_a_file_with_changed_weights(saved: Path) -> None:
    whole = saved.read_bytes()
    weights = CONTENT["model"]["weight"].numpy().tobytes()
    assert whole.count(weights) == 1
    saved.write_bytes(whole.replace(weights, weights[:-1] + b"?"))
    assert_refused(saved, "is damaged")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"epochs: 16\n", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), id="png"),
        pytest.param(bytes(5000), id="zeros"),
    ],
)
def test_a_file_of_another_kind(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    assert_refused(path, "is damaged or no checkpoint")


@pytest.mark.parametrize("content", [{"weight": torch.ones(3)}, [1, 2], torch.ones(3), {"format": "other"}], ids=type)
def test_a_file_of_other_tensors(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    assert_refused(tmp_path / "weights.pt", "is not a Rebar checkpoint")


def test_one_of_another_version(tmp_path: Path) -> None:
    torch.save({"format": "rebar-checkpoint", "version": 99}, tmp_path / "future.pt")
    assert_refused(tmp_path / "future.pt", "has version 99; this Rebar reads 2")


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_no_code_is_run(plain_pickle: bool, tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.pt", tmp_path / "was_run"
    content = {"format": "rebar-checkpoint", "version": 2, "model": Malicious(proof)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    assert_refused(path, "is damaged or no checkpoint")
    assert not proof.exists()


# ------------------------------------------------------------------ which are kept


def test_copies_are_kept_by_policy(saved: Path) -> None:
    for epoch, is_best in ((1, True), (2, False), (3, True), (4, False)):
        save_checkpoint(saved, {"epoch": epoch})
        keep_copies(saved, epoch=epoch, is_best=is_best, keep_every=2)
    kept = {path.name: read_checkpoint(path)["epoch"] for path in saved.parent.iterdir()}
    assert kept == {"last.pt": 4, "previous.pt": 3, "best.pt": 3, "epoch_002.pt": 2, "epoch_004.pt": 4}


def test_names_are_the_bare_models() -> None:
    names = ["module.conv1.weight", "_orig_mod.module.fc.bias", "layer1.0._orig_mod.bn1.weight", "fc.weight"]
    assert list(plain_names({name: torch.ones(1) for name in names})) == [
        "conv1.weight",
        "fc.bias",
        "layer1.0.bn1.weight",
        "fc.weight",
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_full_gives_up_the_oldest_copy_first(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "none", disk], capture_output=True).returncode:
        pytest.skip("no mounting here")
    try:
        last, weights = disk / "last.pt", torch.zeros(500_000)  # 2 MB
        for epoch in range(4):  # three do not fit
            save_checkpoint(last, {"epoch": epoch, "model": weights})
        assert read_checkpoint(last)["epoch"] == 3
        with pytest.raises(CheckpointError, match=r"last.pt cannot be written .*the disk is full.*intact"):
            save_checkpoint(last, {"epoch": 4, "model": torch.zeros(1_000_000)})
        assert read_checkpoint(last)["epoch"] == 3
        assert [path.name for path in disk.iterdir()] == ["last.pt"]
    finally:
        subprocess.run(["umount", disk], check=True)


# ------------------------------------------------------------------ writing that fails


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (RuntimeError("PytorchStreamWriter failed writing file"), "failed writing file"),
    ],
)
def test_a_failed_write_leaves_the_earlier_one(
    error: Exception, reason: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(content: object, file: Any) -> None:
        file.write(b"the first half")
        raise error

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match=rf"last.pt cannot be written .*{reason}.*one before it.*intact"):
        save_checkpoint(saved, {"epoch": 4})
    monkeypatch.undo()
    assert read_checkpoint(saved)["epoch"] == 3
    assert [path.name for path in saved.parent.iterdir()] == ["last.pt"]


def test_a_kill_while_writing_leaves_the_earlier_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(content: object, file: Any) -> None:
        file.write(b"the first half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, {"epoch": 4})
    monkeypatch.undo()
    assert read_checkpoint(saved)["epoch"] == 3
    save_checkpoint(saved, {"epoch": 5})
    assert read_checkpoint(saved)["epoch"] == 5
    assert sorted(path.name for path in saved.parent.iterdir()) == ["last.pt", "previous.pt"]


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone/last.pt cannot be written"):
        save_checkpoint(tmp_path / "gone/last.pt", CONTENT)
