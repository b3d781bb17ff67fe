"""Checkpoints: written aside, made durable, then renamed, so that the last good one always survives."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rebar.config import knob
from rebar.errors import RebarError
from rebar.replacing import replacing

FORMAT = "rebar-checkpoint"
VERSION = 1


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints and resuming."""

    resume: str = knob("auto", help="auto: go on from the run folder's checkpoint; none: start afresh; or a file")
    overwrite: bool = knob(False, help="with --resume none: delete an earlier run in the folder")


class CheckpointError(RebarError):
    """A checkpoint that is missing, damaged, or of something else."""


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` (tensors and plain values) so that ``path`` holds either the old or the new whole.

    Raises CheckpointError where it cannot be written; the earlier file is then untouched.
    """
    try:
        with replacing(path) as (file,):
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
    except (RebarError, RuntimeError) as error:  # torch reports some failed writes as a RuntimeError
        raise CheckpointError(
            f"checkpoint {path} cannot be written ({error}). The one before it, if any, is intact; "
            "free some space and run the same command again"
        ) from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain values, never code.

    Raises CheckpointError naming the file and what is wrong with it.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint itself, such as {path / 'checkpoints/last.pt'}")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path} is damaged or no checkpoint: {reason}") from None
    if damaged:
        raise CheckpointError(f"checkpoint {path} is damaged: the checksum of its part {damaged} is wrong")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a Rebar checkpoint")
    if content.get("version") != VERSION:
        raise CheckpointError(f"checkpoint {path} has version {content.get('version')}; this Rebar reads {VERSION}")
    return content
