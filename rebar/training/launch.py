"""Entry point of ``train_imagenet.py``: command line, process group, and exit status."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rebar.config import config_name, parse_config
from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.run_status import read_status, write_status
from rebar.training import aliases
from rebar.training.config import TrainConfig
from rebar.training.distributed import join_world
from rebar.training.error_hints import error_hints
from rebar.training.preemption import EXIT_PREEMPTED, Interrupted
from rebar.training.run import Run
from rebar.training.setup import build_run


def launch(argv: Sequence[str], train: Callable[[Run], None]) -> None:
    """Parse the command line, join the process group, build the run and train. Exit with status 75 if interrupted.

    Raises RebarError in place of the errors that :mod:`rebar.training.error_hints` recognizes.
    """
    config = parse_command_line(argv)
    interrupted = False
    with (
        record_early_failure(config),
        error_hints(
            batch_size=config.training.batch_size,
            precision=config.training.precision,
            accumulate=config.execution.accumulate,
        ),
        join_world() as world,
    ):
        try:
            train(build_run(config, world))
        except Interrupted as stop:
            if world.is_main:
                print(f"interrupted by {stop.reason}: the checkpoint is saved, the same command resumes", flush=True)
            interrupted = True
    if interrupted:
        sys.exit(EXIT_PREEMPTED)


def parse_command_line(argv: Sequence[str]) -> TrainConfig:
    """Return the configuration. The run folder defaults to ``runs/NAME``, where NAME is the stem of the config file."""
    argv = aliases.translate(argv)
    config = parse_config(
        TrainConfig,
        argv,
        description="Train an ImageNet classifier from .beton files.",
        example="torchrun --nproc_per_node=4 train_imagenet.py --config-file rn50_configs/g5_4gpu.yaml",
        aliases=aliases.format_table(),
    )
    folder = config.logging.folder or str(Path("runs") / (config_name(argv) or config.model.arch))
    return dataclasses.replace(config, logging=dataclasses.replace(config.logging, folder=folder))


@contextmanager
def record_early_failure(config: TrainConfig) -> Iterator[None]:
    """Write an error that occurs before :func:`run_context` to the ``status.json`` of the run to resume.

    Nothing is written if the file does not exist, the run is finished, or another process is running it.
    """
    training, folder = config.training, RunFolder(Path(config.logging.folder))
    is_attempt = not (training.eval_only or training.dry_run or training.find_lr)
    before = _content(folder.status)
    try:
        yield
    except Exception as error:
        status = read_status(folder.status)
        is_ours = is_attempt and int(os.environ.get("RANK", 0)) == 0 and _content(folder.status) == before
        if is_ours and status is not None and status.state != "finished" and not folder.is_locked():
            reason = str(error) or type(error).__name__
            with suppress(RebarError):
                write_status(folder.status, dataclasses.replace(status, state="failed", reason=reason, exit_code=1))
        raise


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
