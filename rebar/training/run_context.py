"""The context manager around the epoch loop: folder lock, log, signals, uploads, ``status.json`` and report."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from rebar.cli import warn
from rebar.config import flatten_config, to_yaml
from rebar.errors import RebarError
from rebar.reporting.console import warn_above_bar
from rebar.reporting.log import open_log, read_log, truncate_log
from rebar.reporting.plots import plot_run
from rebar.reporting.report import write_report
from rebar.reporting.run_folder import RunFolder
from rebar.storage.files import atomic_write
from rebar.training.control import listen_for_stop
from rebar.training.distributed import wait_for_all
from rebar.training.error_hints import error_hints
from rebar.training.estimate import TimeEstimate
from rebar.training.preemption import EXIT_PREEMPTED, Interrupted
from rebar.training.publish import publish_or_warn
from rebar.training.resolution import all_resolutions
from rebar.training.resume import record_origin
from rebar.training.run import Run
from rebar.training.upload import Uploader, start_uploads


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
            _write_plot_and_report(run.folder)
    if world.is_main and config.logging.hf_repo:
        publish_or_warn(run.folder, config.logging.hf_repo)


def _prepare_folder(run: Run, stack: ExitStack) -> None:
    """Lock the folder, delete the files of an earlier run unless resuming it, and write the configuration."""
    folder, resume = run.folder, run.config.checkpoint.resume
    stack.enter_context(folder.locked())
    folder.prepare(from_scratch=not run.is_resumed)
    with atomic_write(folder.config) as (file,):
        file.write(to_yaml(run.config).encode())
    if resume != "auto":
        record_origin(resume, folder)
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
    uploader = start_uploads(config.logging.upload, run.folder, run.progress, run.steps_per_epoch, replaces=replaces)
    run.writer.on_written = uploader.checkpoint_saved
    stack.callback(uploader.finish)
    return uploader


def _write_plot_and_report(folder: RunFolder) -> None:
    """Write the plot and the report. Errors become warnings, because the run itself is complete."""
    if folder.log.is_file() and any(record["event"] == "epoch" for record in read_log(folder.log)):
        _or_warn(lambda: plot_run(folder.path), f"python -m rebar.reporting.plots {folder.path}")
    _or_warn(lambda: write_report(folder.path), f"python -m rebar.reporting {folder.path}")


def _or_warn(write: Callable[[], object], command: str) -> None:
    try:
        write()
    except RebarError as error:
        warn(f"{error} To retry: {command}")
