"""What surrounds the epochs of a run: its folder, log and status, and who may end it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from rebar.config import flatten_config, to_yaml
from rebar.errors import RebarError
from rebar.loading import Loader
from rebar.reporting.console import warn_beside_bar
from rebar.reporting.report import write_report
from rebar.reporting.run_folder import RunFolder
from rebar.reporting.run_log import RunLog, forget_after, open_log
from rebar.reporting.status import RunStatus, State, write_status
from rebar.run_manifest import Progress
from rebar.training.checkpoint import keep_copies, save_checkpoint
from rebar.training.config import TrainConfig
from rebar.training.control import RunControl, asked_to_stop
from rebar.training.distributed import World, wait_for_all
from rebar.training.estimate import TimeEstimate
from rebar.training.failures import explained
from rebar.training.preemption import EXIT_PREEMPTED, Interrupted
from rebar.training.resolution import resolution_at
from rebar.training.state import TrainState
from rebar.training.upload import Uploader, start_uploads


@contextmanager
def recorded_run(
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
            folder.config.write_text(to_yaml(config))
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
                [resolution_at(epoch, config.resolution) for epoch in range(config.training.epochs)],
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
            with explained(
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
            write_report(folder.path)
