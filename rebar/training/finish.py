"""Finish a run: final evaluations, weight export and summary."""

from rebar.models.build import count_parameters
from rebar.reporting import console
from rebar.training.evaluate import add_resolution_suffix
from rebar.training.export import export_metadata, export_suffixes, export_weights
from rebar.training.metrics import memory_metrics
from rebar.training.run import Run
from rebar.training.validation import update_average_bn, validate


def print_evaluation(run: Run) -> None:
    """Evaluate the run's checkpoint or pretrained model, and print the accuracy. Every rank must call it."""
    result = validate(run)
    if run.world.is_main:
        print(f"{result.num_samples:,} images: {console.accuracy_line(result.metrics())}")


def finish(run: Run) -> None:
    """Run the final evaluations, log the end of the run, export the weights and print the summary."""
    config, state = run.config, run.state
    if state.last_metrics.get("step") != run.step or "val/top1" not in state.last_metrics:
        # a limit was reached before this attempt started
        update_average_bn(run)
        state.last_metrics = {"step": run.step} | validate(run).metrics()
    validate_final_resolutions(run)
    parameters = count_parameters(state.model)
    metrics = {
        **memory_metrics(run.world),
        **state.last_metrics,
        "time/train_seconds": state.train_seconds + state.meter.seconds,
    }
    run.log.write("end", {"epoch": state.epoch, "parameters": parameters, **metrics})
    if run.world.is_main:
        metadata = export_metadata(vars(state), use_blurpool=config.training.use_blurpool)
        for suffix in export_suffixes(config.checkpoint.export):
            weights = state.evaluated_model.state_dict()
            export_weights(run.folder.path / f"weights{suffix}", weights, metadata)
        print("\n" + console.summary(state.arch, parameters, state.epoch, metrics, run.folder), flush=True)


def validate_final_resolutions(run: Run) -> None:
    """Validate at ``validation.final_resolutions``. The checkpoint stores the results, so a resumed run skips them."""
    state, validation = run.state, run.config.validation
    missing = [size for size in validation.final if f"val/top1_{size}px" not in state.last_metrics]
    for size in missing:
        metrics = state.last_metrics
        if size != validation.resolution:
            metrics = validate(run, resolution=size).metrics()
        state.last_metrics |= add_resolution_suffix(metrics, size)
    if missing:
        run.save_checkpoint()
