"""What surrounds the epochs of a run: its folder, log and status, and who may end it."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from rebar.cli import warn
from rebar.config import flatten_config, to_yaml
from rebar.errors import RebarError
from rebar.loading import Loader
from rebar.reporting.console import warn_beside_bar
from rebar.reporting.log import RunLog, forget_after, open_log, read_log
from rebar.reporting.plots import plot_run
from rebar.reporting.report import write_report
from rebar.reporting.run_folder import RunFolder, RunStatus, State, read_status, write_status
from rebar.storage.atomic_write import atomic_write
from rebar.storage.run_manifest import Progress
from rebar.training.checkpoint import keep_copies, save_checkpoint
from rebar.training.config import TrainConfig
from rebar.training.control import RunControl, asked_to_stop
from rebar.training.distributed import World, wait_for_all
from rebar.training.error_hints import error_hints
from rebar.training.estimate import TimeEstimate
from rebar.training.preemption import EXIT_PREEMPTED, Interrupted
from rebar.training.resolution import all_resolutions
from rebar.training.resume import begin
from rebar.training.state import TrainState
from rebar.training.upload import Uploader, start_uploads


@contextmanager
def run_context(
    config: TrainConfig, state: TrainState, loader: Loader, folder: RunFolder, world: World, *, afresh: bool
) -> Iterator[tuple[RunLog, RunControl]]:
    """The run's log and control meanwhile; then ``status.json`` says how it ended, a finished run has its report.

    Raises RebarError where another run uses the folder, and in place of errors that can be explained.
    """
    wait_for_all(world)  # nobody looks for the checkpoint any more
    settings = flatten_config(config)
    steps_per_epoch = len(loader)
    earlier_seconds = state.run_seconds

    def take_checkpoint() -> Callable[[], None] | None:
        state.loader = loader.state_dict(state.meter.steps_of_pass) if state.meter.steps else None
        state.note_corrupt_samples(loader, world)
        state.run_seconds = earlier_seconds + control.seconds
        content = state.take_checkpoint(settings, world)
        if content is None:
            return None
        ends_epoch, taken_at = state.meter.steps == 0, progress()
        is_best, keep_every = config.checkpoint.keep_best and state.is_best, config.checkpoint.keep_every

        def write() -> None:  # of what was taken: the state goes on meanwhile
            save_checkpoint(folder.last_checkpoint, content)
            if ends_epoch:
                keep_copies(folder.last_checkpoint, epoch=taken_at.epoch, is_best=is_best, keep_every=keep_every)
            if uploader is not None:
                uploader.checkpoint_saved(taken_at)

        return write

    def progress() -> Progress:
        step = state.steps(steps_per_epoch)
        return Progress(state.epoch, step, step / steps_per_epoch)

    def note(how: State, reason: str, exit_code: int | None) -> None:
        if world.is_main:
            step = state.steps(steps_per_epoch)
            write_status(folder.status, RunStatus(how, reason, state.epoch, step, exit_code))

    uploader: Uploader | None = None
    with ExitStack() as stack:
        if world.is_main:
            stack.enter_context(folder.claimed())
            folder.prepare(afresh=afresh)
            with atomic_write(folder.config) as (file,):
                file.write(to_yaml(config).encode())
            if config.checkpoint.resume != "auto":
                begin(config.checkpoint.resume, folder)
            forget_after(folder.log, epoch=state.epoch, step=state.steps(steps_per_epoch))
        log = stack.enter_context(open_log(folder.log, config.logging, is_main=world.is_main, settings=settings))
        request = stack.enter_context(asked_to_stop(config.checkpoint, world))
        control = RunControl(config.checkpoint, request, world, take=take_checkpoint)
        control.set_limits(
            steps=state.steps(steps_per_epoch),
            max_steps=config.training.max_steps,
            budget_seconds=3600 * config.training.budget_hours,
            used_seconds=earlier_seconds,
        )
        if world.is_main:
            control.estimate = TimeEstimate(
                all_resolutions(config.training.epochs, config.resolution),
                steps_per_epoch=steps_per_epoch,
                global_batch=loader.global_batch,
                max_steps=config.training.max_steps,
            )
        if world.is_main and config.logging.upload:
            replaces = afresh or config.checkpoint.resume != "auto"
            uploader = start_uploads(config.logging.upload, folder, progress(), steps_per_epoch, replaces=replaces)
            stack.callback(uploader.finish)
        note("running", "", None)
        try:
            with error_hints(
                batch_size=config.training.batch_size,
                precision=state.precision,
                accumulate=config.execution.accumulate,
            ):
                yield log, control
                control.wait_until_saved()
        except Interrupted as interrupted:
            note("interrupted", interrupted.reason, EXIT_PREEMPTED)
            control.close()
            if uploader is not None:
                uploader.finish()
            wait_for_all(world)  # whoever leaves first makes torchrun end the others
            raise
        except BaseException as error:
            try:
                control.wait_until_saved()
            except Exception as failed:  # the first error is the one to be raised
                warn_beside_bar(str(failed))
            with suppress(RebarError):  # the disk may be what is full
                note("failed", str(error) or type(error).__name__, 1)
            raise
        control.close()
        note("finished", control.limit, 0)
        if world.is_main:
            _draw(folder)


def _draw(folder: RunFolder) -> None:
    """Plot and report, whose want must not spoil a run that is complete."""
    if folder.log.is_file() and any(record["event"] == "epoch" for record in read_log(folder.log)):
        _or_warn(lambda: plot_run(folder.log, folder.plot), f"python -m rebar.reporting.plots {folder.path}")
    _or_warn(lambda: write_report(folder.path), f"python -m rebar.reporting {folder.path}")


def _or_warn(draw: Callable[[], object], later: str) -> None:
    try:
        draw()
    except RebarError as error:
        warn(f"{error}. Later: {later}")


@contextmanager
def refusal_noted(config: TrainConfig) -> Iterator[None]:
    """Where an error ends this attempt before its run is recorded, the earlier one's ``status.json`` says so.

    Only where there is one, of a run that is neither complete nor under way elsewhere.
    """
    training, folder = config.training, RunFolder(Path(config.logging.folder))
    is_attempt = not (training.eval_only or training.dry_run or training.find_lr)
    before = _content(folder.status)
    try:
        yield
    except Exception as error:
        status = read_status(folder.status)
        is_ours = is_attempt and int(os.environ.get("RANK", 0)) == 0 and _content(folder.status) == before
        if is_ours and status is not None and status.state != "finished" and not folder.is_in_use():
            failed = replace(status, state="failed", reason=str(error) or type(error).__name__, exit_code=1)
            with suppress(RebarError):
                write_status(folder.status, failed)
        raise


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
