"""Start and end a run: command line, process group, run folder, log, signals, uploads and exit status."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rebar.config import flatten_config, to_yaml
from rebar.errors import RebarError
from rebar.loading.options import all_resolutions
from rebar.reporting.console import warn_above_bar
from rebar.reporting.log import open_log, truncate_log
from rebar.reporting.run_folder import RunFolder
from rebar.storage.files import atomic_write
from rebar.storage.run_store import read_status, write_status
from rebar.training.build import build_run
from rebar.training.command_line import name_options_as_typed, parse_with_changes
from rebar.training.config import TrainConfig
from rebar.training.distributed import join_world, wait_for_all
from rebar.training.error_hints import error_hints
from rebar.training.metrics import TimeEstimate
from rebar.training.publish import publish_or_warn, write_plot_and_report
from rebar.training.resume import record_origin
from rebar.training.run import Run
from rebar.training.stopping import EXIT_PREEMPTED, Interrupted, listen_for_stop
from rebar.training.upload import Uploader, start_uploads


def launch(argv: Sequence[str], train: Callable[[Run], None]) -> None:
    """Parse the command line, join the process group, build the run and train. Exit with status 75 if interrupted.

    Raises RebarError in place of the errors that :mod:`rebar.training.error_hints` recognizes.
    """
    config, changed = parse_with_changes(argv)
    interrupted = False
    with (
        record_early_failure(config),
        name_options_as_typed(argv),
        error_hints(
            batch_size=config.training.batch_size,
            precision=config.training.precision,
            accumulate=config.execution.accumulate,
        ),
        join_world() as world,
    ):
        try:
            train(build_run(config, world, changed))
        except Interrupted as stop:
            if world.is_main:
                print(f"interrupted by {stop.reason}: the checkpoint is saved, the same command resumes", flush=True)
            interrupted = True
    if interrupted:
        sys.exit(EXIT_PREEMPTED)


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
        may_write = is_attempt and os.environ.get("RANK", "0") == "0" and _content(folder.status) == before
        if may_write and status is not None and status.state != "finished" and not folder.is_locked():
            reason = str(error) or type(error).__name__
            with suppress(RebarError):
                write_status(folder.status, dataclasses.replace(status, state="failed", reason=reason, exit_code=1))
        raise


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@contextmanager
def run_context(run: Run) -> Iterator[None]:
    """Open the run's log and start its control; at the end, write its status, plot and report, and publish it.

    Every rank must enter it. Raises RebarError if another run uses the folder, and in place of the errors that
    :mod:`rebar.training.error_hints` recognizes.
    """
    config, world, control = run.config, run.world, run.control
    wait_for_all(world)  # until every rank has read the checkpoint
    with ExitStack() as stack:
        if world.is_main:
            _prepare_folder(run, stack)
        options, is_main = flatten_config(config), world.is_main
        run.log = stack.enter_context(open_log(run.folder.log, config.logging, is_main=is_main, options=options))
        spot_notice, poll_seconds = config.checkpoint.spot_notice, config.checkpoint.spot_poll_seconds
        request = stack.enter_context(listen_for_stop(world, spot_notice=spot_notice, poll_seconds=poll_seconds))
        control.start(request, used_seconds=run.state.run_seconds)
        control.set_limits(
            step=run.step, max_steps=config.training.max_steps, budget_seconds=3600 * config.training.budget_hours
        )
        uploader = _start_reporting(run, stack) if world.is_main else None
        run.write_status("running")
        try:
            with error_hints(
                batch_size=config.training.batch_size,
                precision=run.state.precision,
                accumulate=config.execution.accumulate,
            ):
                yield
                run.wait_until_saved()
        except Interrupted as interrupted:
            run.write_status("interrupted", interrupted.reason, EXIT_PREEMPTED)
            control.close()
            if uploader is not None:
                uploader.finish()
            wait_for_all(world)  # torchrun kills the other ranks as soon as one exits
            raise
        except BaseException as error:
            try:
                run.wait_until_saved()
            except Exception as failed:  # raise the first error
                warn_above_bar(str(failed))
            with suppress(RebarError):  # the disk may be full
                run.write_status("failed", str(error) or type(error).__name__, 1)
            raise
        control.close()
        run.write_status("finished", control.limit, 0)
        if world.is_main:
            write_plot_and_report(run.folder)
    if world.is_main and config.logging.hf_repo:
        publish_or_warn(run.folder, config.logging.hf_repo)


def _prepare_folder(run: Run, stack: ExitStack) -> None:
    """Lock the folder, delete the files of an earlier run unless resuming it, and write the configuration."""
    folder, resume = run.folder, run.config.checkpoint.resume
    stack.enter_context(folder.locked())
    folder.prepare(from_scratch=not run.is_resumed)
    if resume != "auto":
        record_origin(resume, folder, overwrite=run.config.checkpoint.overwrite)
    with atomic_write(folder.config) as (file,):
        file.write(to_yaml(run.config).encode())
    truncate_log(folder.log, epoch=run.state.epoch, step=run.step)


def _start_reporting(run: Run, stack: ExitStack) -> Uploader | None:
    """Start the time estimate and, if configured, the uploads."""
    config = run.config
    run.estimate = TimeEstimate(
        all_resolutions(config.training.epochs, config.resolution),
        steps_per_epoch=run.steps_per_epoch,
        global_batch=run.train_loader.global_batch,
        max_steps=config.training.max_steps,
    )
    if not config.logging.upload:
        return None
    replaces = not run.is_resumed or config.checkpoint.resume != "auto"
    how = {"replaces": replaces, "overwrite": config.checkpoint.overwrite}
    uploader = start_uploads(config.logging.upload, run.folder, run.progress, run.steps_per_epoch, **how)
    run.writer.on_written = uploader.checkpoint_saved
    stack.callback(uploader.finish)
    return uploader
