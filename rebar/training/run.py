"""The Run object, which the training loop shares with the modules that set it up, validate and finish it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from rebar.augment.policy import mix_weight
from rebar.config import flatten_config
from rebar.loading import Batch, Loader, Normalizer
from rebar.loading.prefetch import Augment
from rebar.reporting import console
from rebar.reporting.log import RunLog
from rebar.reporting.run_folder import RunFolder
from rebar.storage.run_store import Progress, RunStatus, State, write_status
from rebar.training.checkpoint import CheckpointWriter
from rebar.training.config import TrainConfig
from rebar.training.distributed import World
from rebar.training.execution import input_dtype
from rebar.training.metrics import HealthMonitor, TimeEstimate, check_finite, memory_metrics
from rebar.training.state import TrainState
from rebar.training.stopping import Interrupted, RunControl, StopReason

T = TypeVar("T")


@dataclass
class Run:
    """Configuration, ranks, state, data, log and control of a run.

    :meth:`save_checkpoint` collects the state. :class:`CheckpointWriter` copies it to host memory, writes it on a
    background thread, and then notifies the uploader.
    """

    config: TrainConfig
    world: World
    folder: RunFolder
    state: TrainState
    model: nn.Module
    """``state.model``, wrapped in DistributedDataParallel and torch.compile as configured."""
    train_loader: Loader
    val_loader: Loader
    is_resumed: bool = False
    """Whether a checkpoint was loaded."""
    changed_options: Mapping[str, Any] = field(default_factory=dict)
    """The options that differ from the recipe's, as ``{"section.name": value}``."""
    log: RunLog = field(default_factory=lambda: RunLog(None))
    """Discards its records until :func:`run_context` opens it."""
    control: RunControl = field(init=False)
    writer: CheckpointWriter = field(init=False)
    health: HealthMonitor = field(default_factory=HealthMonitor)
    has_heading: bool = False
    """Whether the heading of the epochs' lines is printed."""
    estimate: TimeEstimate | None = None
    """Prints the remaining time once, on rank 0 only."""
    _progress_bar: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        options = self.config.checkpoint
        self.control = RunControl(self.world, every_steps=options.every_steps, every_minutes=options.every_minutes)
        self.writer = CheckpointWriter(
            self.folder.last_checkpoint, keep_best=options.keep_best, keep_every=options.keep_every
        )

    # ------------------------------------------------------------------ progress

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train_loader)

    @property
    def step(self) -> int:
        """The number of completed steps of the run."""
        return self.state.steps(self.steps_per_epoch)

    @property
    def epoch_is_complete(self) -> bool:
        """Whether the current epoch has no steps left."""
        return self.state.meter.steps >= self.steps_per_epoch

    @property
    def resolution(self) -> int:
        """The training resolution of the current epoch, in pixels."""
        return self.config.resolution.at(self.state.epoch)

    @property
    def progress(self) -> Progress:
        """The progress in epochs and steps, for the manifest of an uploaded run."""
        return Progress(self.state.epoch, self.step, self.step / self.steps_per_epoch)

    @property
    def shows_progress(self) -> bool:
        """Whether this rank draws progress bars."""
        return self.world.is_main and self.config.logging.show_progress

    def write_status(self, state: State, reason: str = "", exit_code: int | None = None) -> None:
        """Write ``status.json``, on rank 0 only."""
        if self.world.is_main:
            now = self.progress
            status = RunStatus(state, reason, now.epoch, now.step, exit_code, position=now.position)
            write_status(self.folder.status, status)

    # ------------------------------------------------------------------ data

    def normalizer(self, augment: Augment | None = None) -> Normalizer:
        """Return the normalizer for this run. ``augment`` is applied to uint8 images on the device."""
        return Normalizer(
            self.world.device,
            input_dtype(self.state.precision),
            mean=self.state.mean,
            std=self.state.std,
            channels_last=self.config.execution.channels_last,
            augment=augment,
        )

    def train_batches(self) -> Iterable[Batch]:
        """Return the remaining batches of the current epoch, timed by the meter, with a progress bar."""
        meter = self.state.meter
        epoch = () if self.epoch_is_complete else self.train_loader.epoch(self.state.epoch, self.resolution)
        self._progress_bar = console.progress(
            meter.timed(epoch),
            f"epoch {self.state.epoch + 1}/{self.config.training.epochs}",
            total=self.steps_per_epoch,
            initial=meter.steps,
            enabled=self.shows_progress,
        )
        batches: Iterable[Batch] = self._progress_bar
        return batches

    def announce_first_step(self, losses: Iterable[T]) -> Iterable[T]:
        """Return ``losses``. Print what the first step of the epoch does while it takes longer than five seconds."""
        what = "compiling the model" if self.config.execution.compile_model else "reading the first batch"
        return console.announce_first(losses, f"first step at {self.resolution} px, {what}")

    # ------------------------------------------------------------------ log

    def log_step(self, step: int, loss: float) -> None:
        """Log the loss of a step and show it in the progress bar. Raises RebarError if it is NaN or infinite."""
        lr = self.state.lr
        self.health.on_loss(check_finite(loss, step), step, lr)
        if self.estimate:
            self.estimate.on_logged_step(step)
        self._progress_bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.3g}", px=self.resolution, refresh=False)
        record = {"step": step, "epoch": step / self.steps_per_epoch, "train/loss": loss, "train/lr": lr}
        weight = mix_weight(self.config.regularization, seed=self.config.training.seed, step=step)
        self.log.write("step", record if weight is None else {**record, "train/mix_weight": weight})

    def epoch_metrics(self) -> dict[str, float]:
        """Return the training metrics of the current epoch, and stop its clock. Every rank must call it.

        Raises RebarError if the mean loss is NaN or infinite.
        """
        state, meter = self.state, self.state.meter
        train_loss, train_top1 = meter.averages(self.world)
        meter.stop_clock()
        state.collect_corrupt_samples(self.train_loader, self.world)
        return {
            "train/loss": check_finite(train_loss, self.step),
            "train/top1": train_top1,
            "train/lr": state.lr,
            "train/resolution": self.resolution,
            "throughput/samples_per_second": meter.steps * self.train_loader.global_batch / meter.seconds,
            "data/corrupt_samples": len(state.corrupt_samples),
            "time/epoch_seconds": meter.seconds,
            "time/data_wait_fraction": meter.wait_seconds / meter.seconds,
            **memory_metrics(self.world),
        }

    def log_epoch(self, metrics: dict[str, float]) -> None:
        """Log the metrics of an epoch and store them in the state."""
        state = self.state
        state.last_metrics = metrics | {"step": self.step}
        seconds = state.train_seconds + state.meter.seconds
        self.log.write("epoch", {"epoch": state.epoch, "time/train_seconds": seconds, **state.last_metrics})

    # ------------------------------------------------------------------ checkpoints and stopping

    def after_step(self) -> bool:
        """Save a checkpoint if one is due. Return whether the run has reached a limit. Every rank must call it.

        Raises Interrupted after a stop request to any rank, once a checkpoint is saved, and CheckpointError if the
        previous checkpoint could not be written.
        """
        self.writer.raise_failure()
        decision = self.control.after_step(self.step)
        if decision is not StopReason.NONE:
            self.save_checkpoint()
        self._raise_if_interrupted(decision)
        return self.control.is_over

    def interruptible(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches of an evaluation. Raises like :meth:`after_step`. Every rank must use it."""
        for batch in batches:
            yield batch
            self.writer.raise_failure()
            decision = self.control.during_evaluation()
            if decision.is_interruption:
                self.save_checkpoint()
            self._raise_if_interrupted(decision)

    def save_checkpoint(self) -> None:
        """Copy the run's state to host memory and start writing it in the background. Every rank must call it.

        Raises CheckpointError if the previous checkpoint could not be written, or if the weights are not finite.
        """
        state, loader = self.state, self.train_loader
        self.writer.wait()  # it reuses the host memory
        state.loader = loader.state_dict(state.meter.steps_of_attempt) if state.meter.steps else None
        state.collect_corrupt_samples(loader, self.world)
        state.run_seconds = self.control.run_seconds
        content = state.checkpoint_content(flatten_config(self.config), self.world)
        if self.world.is_main:
            self.writer.save(content, self.progress, ends_epoch=state.meter.steps == 0, is_best=state.is_best)
        self.control.restart_save_timer()

    def wait_until_saved(self) -> None:
        """Block until the last checkpoint is written. Raises CheckpointError if that failed."""
        self.writer.wait()

    def _raise_if_interrupted(self, decision: StopReason) -> None:
        if decision.is_interruption:
            self.wait_until_saved()
            raise Interrupted(decision)


TrainSteps = Callable[[Run, Iterable[Batch], Callable[[int], float]], Iterator[torch.Tensor]]
"""The type of ``train_imagenet.train_steps``, which yields the mean loss of each batch."""
