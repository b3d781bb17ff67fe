"""Evaluate the model of a run on the validation data."""

import itertools

from rebar.reporting import console
from rebar.training.distributed import broadcast_buffers
from rebar.training.error_hints import evaluation_error_hints
from rebar.training.evaluate import Evaluation, evaluate
from rebar.training.run import Run
from rebar.training.update_bn import update_bn


def validate(run: Run, *, resolution: int | None = None, max_batches: int | None = None) -> Evaluation:
    """Evaluate the model, or its weight average, on the validation data. Every image counts once over all ranks.

    ``resolution`` is in pixels; default: the configured one. Every rank must call it. Raises Interrupted after a stop
    request, once a checkpoint is saved.
    """
    config, loader, model = run.config, run.val_loader, run.state.evaluated_model
    broadcast_buffers(model, run.world)
    batches = itertools.islice(loader.epoch(0, resolution or config.validation.resolution), max_batches)
    bar = console.progress(run.interruptible(batches), "validation", total=len(loader), enabled=run.shows_progress)
    with evaluation_error_hints(batch_size=config.validation.batch_size, option="--validation.batch_size"):
        return evaluate(
            model,
            run.normalizer().each(bar),
            world=run.world,
            precision=run.state.precision,
            flip_tta=config.validation.lr_tta,
        )


def validate_epoch(run: Run) -> dict[str, float]:
    """Validate after an epoch. Return the metrics by their names in the log."""
    update_average_bn(run)
    metrics = validate(run).metrics()
    run.health.on_validation(metrics["val/loss"], run.state.epoch + 1)
    return metrics


def update_average_bn(run: Run) -> None:
    """Recompute the BatchNorm statistics of an SWA average on training images. Does nothing for EMA."""
    state, loader = run.state, run.train_loader
    if state.average is None or not state.average.needs_bn_update or state.average.updates == 0:
        return
    position = loader.state_dict(state.meter.steps_of_pass)
    update_bn(
        state.average.model,
        run.normalizer().each(loader.epoch(state.epoch + 1, run.resolution)),
        count=run.config.averaging.swa_bn_batches,
        world=run.world,
        precision=state.precision,
    )
    loader.load_state_dict(position)
