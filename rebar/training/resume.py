"""Resume a run: select the checkpoint for ``--resume`` and load it.

``origin.json`` in the run folder records how the run started. If it started with ``--resume none`` or ``--resume
FILE``, the same command, or a restart by the same torchrun, resumes from the run's own checkpoint like ``--resume
auto``.
"""

import dataclasses
import itertools
import os
import shutil
import socket
from pathlib import Path

from rebar.cli import count, warn
from rebar.config import flatten_config, parse_bool
from rebar.errors import RebarError
from rebar.loading import Loader
from rebar.optim.schedules import build_schedule
from rebar.reporting.run_folder import RunFolder
from rebar.storage.files import link_or_copy, sha256_of
from rebar.storage.run_store import PREVIOUS, Origin, read_origin, write_origin
from rebar.training.checkpoint import CheckpointError, keep_damaged_checkpoint
from rebar.training.config import TrainConfig
from rebar.training.distributed import World, gather_from_all
from rebar.training.state import TrainState
from rebar.training.upload import fetch_run, run_store


def normalize_resume(resume: str, folder: RunFolder) -> str:
    """Return a value of --resume as 'auto', 'none' or the path of a checkpoint. ``folder`` is that of this run.

    Raises CheckpointError for another folder without a checkpoint.
    """
    if resume == "last" or parse_bool(resume) is True:
        return "auto"
    if parse_bool(resume) is False:
        return "none"
    path = Path(resume)
    if not path.is_dir():
        return resume
    if path.resolve() == folder.path.resolve():
        return "auto"
    other = RunFolder(path.parent if path.name == "checkpoints" else path)
    newest = other.checkpoint_to_resume("auto")
    if newest is None:
        raise CheckpointError(
            f"checkpoint.resume: {path} has no checkpoint. Pass a run folder with one, or a checkpoint file.",
            code="checkpoint-not-found",
        )
    return str(newest)


def resolve_resume(config: TrainConfig, folder: RunFolder, world: World) -> TrainConfig:
    """Return the configuration, with ``--resume auto`` if this command or this torchrun already started the run.

    Every rank must call it. Raises RebarError if the uploaded run cannot be read.
    """
    resume, overwrite = config.checkpoint.resume, config.checkpoint.overwrite
    training = config.training
    if resume == "auto" or training.eval_only or training.dry_run or training.find_lr:
        return config
    attempts = gather_from_all((folder.last_checkpoint.is_file(), _restarts()), world)
    has_started = False
    if world.is_main:
        origin = _read_origin(config.logging.upload, folder, is_local=all(exists for exists, _ in attempts))
        restarted = any(restarts for _, restarts in attempts)
        starts_from_file = resume != "none" and not overwrite
        has_started = origin is not None and (
            _same_launch(origin, restarted=restarted) or (starts_from_file and _started_from(Path(resume), origin))
        )
        if has_started and starts_from_file:
            print(
                f"resume    the run in {folder.path} started from {resume} and resumes from its own last checkpoint; "
                f"--overwrite restarts it from {resume}",
                flush=True,
            )
    if not gather_from_all(has_started, world)[0]:
        return config
    checkpoint = dataclasses.replace(config.checkpoint, resume="auto", overwrite=False)
    return dataclasses.replace(config, checkpoint=checkpoint)


def load_checkpoint(
    config: TrainConfig, state: TrainState, train_loader: Loader, folder: RunFolder, world: World
) -> bool:
    """Load the checkpoint that --resume selects, after downloading an uploaded run. Return whether there is one.

    Every rank must call it. Raises RebarError if the ranks found different checkpoints.
    """
    loaded = _load_checkpoint(config, state, train_loader, folder, world)
    steps = gather_from_all(state.steps(len(train_loader)), world)
    if len(set(steps)) > 1:
        other = next(rank for rank, step in enumerate(steps) if step != steps[0])
        raise RebarError(
            f"{folder.path}: the nodes have different checkpoints, rank 0 at step {steps[0]:,}, rank {other} at step "
            f"{steps[other]:,}. Put the folder on a file system that they share, pass --upload, or copy the newest "
            "checkpoint to all.",
            code="checkpoint-differs-between-nodes",
        )
    trains = not (config.training.eval_only or config.training.dry_run or config.training.find_lr)
    fell_back = loaded == folder.last_checkpoint.with_name(PREVIOUS) and folder.last_checkpoint.exists()
    if trains and world.is_main and fell_back:
        keep_damaged_checkpoint(folder.last_checkpoint)
    return loaded is not None


def _load_checkpoint(
    config: TrainConfig, state: TrainState, train_loader: Loader, folder: RunFolder, world: World
) -> Path | None:
    """Load the checkpoint on this rank. Return the path of the file that was read, if any."""
    resume, overwrite = config.checkpoint.resume, config.checkpoint.overwrite
    if config.training.find_lr and resume in ("auto", "none"):
        return None  # a range test starts from untrained weights, unless a file is given
    if not (config.training.dry_run or config.training.find_lr):
        fetch_run(config.logging.upload, folder, world, resume=resume, overwrite=overwrite)
    folder.check_overwrite(resume, overwrite=overwrite)
    checkpoint = folder.checkpoint_to_resume(resume)
    if checkpoint is None:
        if config.training.eval_only and not config.model.pretrained:
            raise RebarError(
                f"training.eval_only: {folder.path} has no checkpoint. Pass --resume FILE, or --pretrained for "
                "torchvision's weights.",
                code="checkpoint-not-found",
            )
        return None
    loaded = state.load(checkpoint, flatten_config(config), world)
    if not config.training.eval_only:
        state.restore_position(train_loader)
        _resume_schedule(config, state, train_loader)
    return loaded


def _resume_schedule(config: TrainConfig, state: TrainState, loader: Loader) -> None:
    """Adapt the schedule to a changed number of epochs. Warn if the learning rate jumps."""
    epochs, before, step = config.training.epochs, state.schedule.epochs, state.steps(len(loader))
    state.schedule = state.schedule.resumed(epochs, reset=config.checkpoint.reset_schedule, step=step, lr=state.lr)
    if epochs > max(state.epoch, before) and config.checkpoint.freeze_lr is None:
        learning_rate = build_schedule(
            config.lr, state.schedule, steps_per_epoch=len(loader), global_batch=loader.global_batch
        )
        if learning_rate(step) > 1.5 * state.lr:
            warn(
                f"with {count(epochs, 'epoch')} instead of {before}, the learning rate jumps from {state.lr:.4g} to "
                f"{learning_rate(step):.4g}. --reset-schedule avoids the jump, --freeze-lr VALUE keeps a constant "
                "rate"
            )


def record_origin(resume: str, folder: RunFolder, *, overwrite: bool = False) -> None:
    """Record how the run started. A file given as --resume becomes the folder's last checkpoint.

    Unless ``overwrite``, log, configuration and checkpoints of an earlier run in the folder are kept as ``NAME.1`` (or
    2, 3, ...). Raises RebarError if it cannot be written.
    """
    origin = Origin(resume, agent=_agent(), launch=_launch())
    if resume != "none":
        source, last = Path(resume).resolve(), folder.last_checkpoint
        previous = last.with_name(PREVIOUS)
        try:
            with source.open("rb") as file:
                origin = dataclasses.replace(origin, resume=str(source), sha256=sha256_of(file))
            if source != last.resolve() and not overwrite:
                _keep_earlier_run(folder)
            if last.is_file() and source not in (last.resolve(), previous.resolve()):
                link_or_copy(last, previous)
            if source != last.resolve():
                link_or_copy(source, last)
        except OSError as error:
            raise RebarError(
                f"{last} cannot be written: {error.strerror}. Free some space, or choose another --logging.folder.",
                code="checkpoint-not-writable",
            ) from None
    write_origin(folder.origin, origin)


def _keep_earlier_run(folder: RunFolder) -> None:
    """Copy or link the files that the next run replaces. Raises OSError."""
    checkpoints = [path for path in folder.checkpoints() if path.name != PREVIOUS]
    records = [path for path in (folder.log, folder.config) if path.exists()]
    if not checkpoints:
        return
    number = next(n for n in itertools.count(1) if not any(_kept(path, n).exists() for path in checkpoints + records))
    for path in checkpoints:
        link_or_copy(path, _kept(path, number))
    for path in records:  # the log is not replaced but appended to, so a link would change with it
        shutil.copyfile(path, _kept(path, number))
    warn(f"{folder.path}: the earlier run's checkpoints and log are kept as NAME.{number}")


def _kept(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _read_origin(address: str, folder: RunFolder, *, is_local: bool) -> Origin | None:
    """Return the origin of the folder's run if ``is_local`` (all nodes have a checkpoint), else of the uploaded run."""
    if is_local:
        return read_origin(folder.origin)
    manifest = run_store(address, folder).read_manifest() if address else None
    return manifest.origin if manifest else None


def _started_from(path: Path, origin: Origin) -> bool:
    """Return whether the run started from this file. Compares the path, then the content in case the file was moved."""
    if origin.resume == str(path.resolve()):
        return True
    try:
        with path.open("rb") as file:
            return origin.sha256 == sha256_of(file)
    except OSError:
        return False


def _same_launch(origin: Origin, *, restarted: bool) -> bool:
    """Return whether the same torchrun started both attempts. Rank 0 may have moved to another node in between."""
    if _agent():
        return origin.agent == _agent() or (restarted and origin.launch == _launch() != "")
    return False


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def _launch() -> str:
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return "" if name == "none" else name  # torchrun's default


def _agent() -> str:
    """Return the host, process id and start time of the parent torchrun; empty without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return f"{socket.gethostname()} {parent}"
    return f"{socket.gethostname()} {parent} {started}"
