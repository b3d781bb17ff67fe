"""``--resume none`` and ``--resume FILE`` begin a run once: whatever ends it, the same command goes on.

``origin.json`` in the run's folder says how the run began. While the folder's last checkpoint belongs to it, the same
``--resume FILE``, or a restart by the same torchrun, means ``--resume auto``.
"""

import dataclasses
import os
import socket
from pathlib import Path

from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.run_manifest import PREVIOUS, Origin, read_origin
from rebar.training.checkpoint import link, sha256_of
from rebar.training.config import TrainConfig
from rebar.training.distributed import World, gather_from_all
from rebar.training.uploaded_run import place_of, read_manifest, write_origin


def resolve_resume(config: TrainConfig, folder: RunFolder, world: World) -> TrainConfig:
    """The configuration with ``--resume auto`` where this command, or this torchrun, has begun the run already.

    Every process must call it. Raises RebarError where the uploaded run cannot be read.
    """
    asked = config.checkpoint.resume
    training = config.training
    if asked == "auto" or training.eval_only or training.dry_run or training.find_lr:
        return config
    attempts = gather_from_all((folder.last_checkpoint.is_file(), _restarts()), world)
    goes_on = False
    if world.is_main:
        origin = _origin_of(config.logging.upload, folder, here=all(have for have, _ in attempts))
        restarted = any(restarts for _, restarts in attempts)
        goes_on = origin is not None and (
            _same_launch(origin, restarted=restarted)
            or (asked != "none" and not config.checkpoint.overwrite and _began_from(Path(asked), origin))
        )
        if goes_on and asked != "none" and not config.checkpoint.overwrite:
            print(
                f"resume    the run in {folder.path} began from {asked} and goes on from its own last checkpoint; "
                "--overwrite begins from there again",
                flush=True,
            )
    if not gather_from_all(goes_on, world)[0]:
        return config
    return dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, resume="auto"))


def begin(resume: str, folder: RunFolder) -> None:
    """Keep how the run begins. From a file: it is the last checkpoint from now on, the earlier one the one before.

    Raises RebarError where that cannot be written.
    """
    origin = Origin(resume, agent=_agent(), launch=_launch())
    if resume != "none":
        source, last = Path(resume).resolve(), folder.last_checkpoint
        previous = last.with_name(PREVIOUS)
        try:
            with source.open("rb") as file:
                origin = dataclasses.replace(origin, resume=str(source), sha256=sha256_of(file))
            if last.is_file() and source not in (last.resolve(), previous.resolve()):
                link(last, previous)
            if source != last.resolve():
                link(source, last)
        except OSError as error:
            raise RebarError(f"{last} cannot be written: {error.strerror}") from None
    write_origin(folder, origin)


def _origin_of(address: str, folder: RunFolder, *, here: bool) -> Origin | None:
    """Of the run to go on with: the folder's where all machines have its checkpoint, else the uploaded one's."""
    if here:
        return read_origin(folder.origin)
    manifest = read_manifest(place_of(address, folder)) if address else None
    return manifest.origin if manifest else None


def _began_from(path: Path, origin: Origin) -> bool:
    """By its name, as a run may replace the file it began from; or by content, as another machine may name it so."""
    if origin.resume == str(path.resolve()):
        return True
    try:
        with path.open("rb") as file:
            return origin.sha256 == sha256_of(file)
    except OSError:
        return False


def _same_launch(origin: Origin, *, restarted: bool) -> bool:
    """Whether torchrun started both. On several machines the first process may be another machine's by now."""
    if _agent():
        return origin.agent == _agent() or (restarted and origin.launch == _launch() != "")
    return False


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def _launch() -> str:
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return "" if name == "none" else name  # torchrun's word for no name


def _agent() -> str:
    """The torchrun process above this one, told from an earlier one of its number by its start; empty without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return f"{socket.gethostname()} {parent}"
    return f"{socket.gethostname()} {parent} {started}"
