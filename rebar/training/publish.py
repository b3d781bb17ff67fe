"""Write the results of a run, and publish them on the Hugging Face Hub with a model card.

    HF_TOKEN=hf_... python -m rebar.training.publish runs/g5_4gpu owner/name

``train_imagenet.py --hf-repo owner/name`` publishes at the end of the run. The format of a model card
(https://huggingface.co/docs/hub/model-cards) is YAML metadata with a "model-index" of results, then Markdown.
"""

import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rebar.cli import CommandParser, count, escape_control_characters, run_command, warn
from rebar.config import build_config
from rebar.errors import RebarError
from rebar.models.build import ARCHITECTURES, count_parameters
from rebar.optim.averaging import weights_to_evaluate
from rebar.reporting import console
from rebar.reporting.console import final_resolutions, format_duration
from rebar.reporting.log import read_log, read_run
from rebar.reporting.plots import plot_run
from rebar.reporting.report import write_report
from rebar.reporting.run_folder import RunFolder
from rebar.storage.huggingface import prepare_repository, upload_files
from rebar.training.banner import recipe_summary
from rebar.training.checkpoint import read_checkpoint
from rebar.training.config import TrainConfig
from rebar.training.evaluation import update_average_bn, validate, validate_final_resolutions
from rebar.training.metrics import memory_metrics
from rebar.training.run import Run
from rebar.training.weights import export_metadata, export_suffixes, export_weights

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000
_RESULTS = (
    ("val/top1", "accuracy", "top-1"),
    ("val/top5", "accuracy", "top-5"),
    ("val/top1_tta", "accuracy", "top-1 with flip TTA"),
    ("val/top5_tta", "accuracy", "top-5 with flip TTA"),
)


@dataclass(frozen=True)
class ModelFacts:
    """The content of a model card.

    - resolution: validation resolution in px.
    - metrics: by their names in the log; accuracies are fractions.
    - environment: command, code and versions.
    - in_torchvision: whether torchvision has this architecture.
    """

    name: str
    arch: str
    parameters: int
    num_classes: int
    train_images: int
    resolution: int
    metrics: Mapping[str, float]
    epochs: int
    recipe: str
    hardware: str
    train_seconds: float
    environment: Mapping[str, str]
    use_blurpool: bool
    in_torchvision: bool

    @property
    def dataset(self) -> str:
        """The name of the dataset: ImageNet if the numbers of images and classes match."""
        imagenet = (self.train_images, self.num_classes) == (IMAGENET_IMAGES, IMAGENET_CLASSES)
        classes, images = count(self.num_classes, "class", "classes"), count(self.train_images, "training image")
        return "imagenet-1k" if imagenet else f"{classes}, {images}"


def model_card(facts: ModelFacts, files: Sequence[str]) -> str:
    """Return the model card as text; ``files`` are the names of the files that are published with it."""
    metadata = yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)
    rows = [
        ("top-1, top-5 (%)", _pair(facts.metrics, "val/top1", "val/top5")),
        ("with flip TTA", _pair(facts.metrics, "val/top1_tta", "val/top5_tta")),
        ("evaluated at", f"{facts.resolution} px, each validation image once"),
        *_other_resolutions(facts),
        ("data", facts.dataset),
        ("recipe", facts.recipe),
        ("trained", f"{count(facts.epochs, 'epoch')} in {format_duration(facts.train_seconds)} (without validation)"),
        ("hardware", facts.hardware),
        *((name, f"`{value}`") for name, value in facts.environment.items() if value),
    ]
    table = "\n".join(f"| {name} | {_escape_cell(value)} |" for name, value in rows if value)
    file_list = "\n".join(f"- `{name}`" for name in files)
    return (
        f"---\n{metadata}---\n\n# {facts.name}\n\n"
        f"A {facts.arch} with {facts.parameters:,} parameters for {count(facts.num_classes, 'class', 'classes')}, "
        f"trained with Rebar from FFCV's .beton files.\n\n| | |\n| --- | --- |\n{table}\n\n{_usage(facts)}\n"
        f"## Files\n\n{file_list}\n"
    )


def _escape_cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return escape_control_characters(text).replace("|", r"\|")


def _other_resolutions(facts: ModelFacts) -> list[tuple[str, str]]:
    rows = []
    for pixels in final_resolutions(facts.metrics):
        if pixels != facts.resolution:
            for heading, name in ((f"at {pixels} px", "top{}"), (f"at {pixels} px with flip TTA", "top{}_tta")):
                top1, top5 = (f"val/{name.format(k)}_{pixels}px" for k in (1, 5))
                rows.append((heading, _pair(facts.metrics, top1, top5)))
    return rows


def _pair(metrics: Mapping[str, float], top1: str, top5: str) -> str:
    if metrics.get(top1) is None:
        return ""
    return f"{100 * metrics[top1]:.2f}, {100 * metrics[top5]:.2f}"


def _metadata(facts: ModelFacts) -> dict[str, object]:
    metrics = [
        {"type": kind, "name": name, "value": round(100 * facts.metrics[key], 3)}
        for key, kind, name in _RESULTS
        if facts.metrics.get(key) is not None
    ]
    is_imagenet = facts.dataset == "imagenet-1k"
    dataset = (
        {"type": "imagenet-1k", "name": "ImageNet-1k"} if is_imagenet else {"type": "other", "name": facts.dataset}
    )
    task = {"type": "image-classification", "name": "Image Classification"}
    index = [{"name": facts.name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return {
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", facts.arch, "pytorch", "rebar", "ffcv"],
        **({"datasets": ["imagenet-1k"]} if is_imagenet else {}),
        "metrics": ["accuracy"],
        "model-index": index,
    }


def _usage(facts: ModelFacts) -> str:
    note = ""
    if facts.use_blurpool or not facts.in_torchvision:
        imports = "from rebar.models.build import build_model"
        blurpool = ", use_blurpool=True" if facts.use_blurpool else ""
        model = f'build_model("{facts.arch}", num_classes={facts.num_classes}{blurpool})'
        if facts.in_torchvision:
            note = "The model uses BlurPool. torchvision's model has the same parameters, but other outputs.\n\n"
    else:
        imports = "import torchvision"
        model = f"torchvision.models.{facts.arch}(num_classes={facts.num_classes})"
    return (
        f"{note}```python\n{imports}\nfrom safetensors.torch import load_file\n\n"
        f'model = {model}\nmodel.load_state_dict(load_file("model.safetensors"))\n```\n'
    )


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
    try:
        run.log.write("end", {"epoch": state.epoch, "parameters": parameters, **metrics})
    except RebarError as error:
        raise RebarError(
            f"{error} Training is complete and its checkpoint is saved; only the results are missing. The same command "
            "adds them.",
            code=error.code,
        ) from None
    if run.world.is_main:
        metadata = export_metadata(vars(state), use_blurpool=config.training.use_blurpool)
        for suffix in export_suffixes(config.checkpoint.export):
            weights = state.evaluated_model.state_dict()
            path = run.folder.path / f"weights{suffix}"
            command = f"python evaluate.py --checkpoint {_quoted(run.folder)} --data VAL.beton --export"
            export = partial(export_weights, path, weights, metadata)
            _or_warn(export, "not exported", f"{command} {shlex.quote(str(path))}")
        print("\n" + console.summary(state.arch, parameters, state.epoch, metrics, run.folder), flush=True)


def write_plot_and_report(folder: RunFolder) -> None:
    """Write the plot and the report. Errors become warnings, because the run itself is complete."""
    if folder.log.is_file() and any(record["event"] == "epoch" for record in read_log(folder.log)):
        _or_warn(lambda: plot_run(folder.path), "no plot", f"python -m rebar.reporting.plots {_quoted(folder)}")
    _or_warn(lambda: write_report(folder.path), "no report", f"python -m rebar.reporting {_quoted(folder)}")


def _or_warn(write: Callable[[], object], problem: str, command: str) -> None:
    """Write a result of a complete run. Any error becomes a warning with the command that writes it later."""
    try:
        write()
    except Exception as error:
        reason = str(error) if isinstance(error, RebarError) else f"{type(error).__name__}: {error}."
        warn(f"{problem}: {reason} Training is complete. To retry: {command}")


def _quoted(folder: RunFolder) -> str:
    return shlex.quote(str(folder.path))


def publish_run(folder: RunFolder, repository: str) -> str:
    """Upload a run in one commit and return the URL of the repository.

    The weights are those of the last checkpoint, or their EMA or SWA average if there is one. Raises RebarError if the
    run has no checkpoint or the upload fails.
    """
    checkpoint = read_checkpoint(folder.last_checkpoint)
    report = write_report(folder.path)
    facts = _facts(checkpoint, folder)
    files: dict[str, Path | bytes] = {"config.yaml": folder.config, "log.jsonl": folder.log, "report.html": report}
    with tempfile.TemporaryDirectory(prefix="rebar-publish-") as temporary:
        files["model.safetensors"] = weights = Path(temporary) / "model.safetensors"
        use_blurpool = checkpoint["config"]["training.use_blurpool"]
        metadata = export_metadata(checkpoint, use_blurpool=use_blurpool)
        export_weights(weights, weights_to_evaluate(checkpoint), metadata)
        files["README.md"] = model_card(facts, sorted(files)).encode()
        accuracy = f"top-1 {facts.metrics['val/top1']:.2%}" if "val/top1" in facts.metrics else "not evaluated"
        return upload_files(repository, files, f"{facts.arch}, {count(facts.epochs, 'epoch')}, {accuracy}")


def publish_or_warn(folder: RunFolder, repository: str) -> None:
    """Publish at the end of a run. Errors become warnings, because the run itself is complete."""
    _or_warn(
        lambda: print(f"published {publish_run(folder, repository)}", flush=True),
        "not published",
        f"python -m rebar.training.publish {_quoted(folder)} {repository}",
    )


def _facts(checkpoint: dict[str, Any], folder: RunFolder) -> ModelFacts:
    config = build_config(TrainConfig, checkpoint["config"], origin=str(folder.last_checkpoint))
    run = read_run(folder.path)
    device, ranks = run.start.get("device", "?"), run.start.get("world_size", 1)
    return ModelFacts(
        name=run.name,
        arch=checkpoint["arch"],
        parameters=run.start.get("parameters", 0),
        num_classes=checkpoint["num_classes"],
        train_images=checkpoint["num_samples"],
        resolution=config.validation.resolution,
        metrics={
            name: value
            for name, value in {**run.last, **run.end}.items()
            if name.startswith("val/") and value is not None
        },
        epochs=checkpoint["epoch"],
        recipe=recipe_summary(
            config,
            global_batch=checkpoint["global_batch"],
            precision=run.start.get("precision", config.training.precision),
            gpus=0 if device == "CPU" else ranks,
        ),
        hardware=f"{ranks} x {device}",
        train_seconds=checkpoint["train_seconds"] + checkpoint["meter"]["seconds"],
        environment=run.start.get("environment", {}),
        use_blurpool=config.training.use_blurpool,
        in_torchvision=":" not in checkpoint["arch"] and checkpoint["arch"] not in ARCHITECTURES,
    )


def main(argv: Sequence[str]) -> None:
    """Publish the run folder given on the command line."""
    parser = CommandParser(
        prog="python -m rebar.training.publish",
        description="Publish weights, model card, report, configuration and log of a run on the Hugging Face Hub.",
        epilog="The token is read from HF_TOKEN, or from 'hf auth login'.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="model repository; created if missing")
    options = parser.parse_args(list(argv))
    folder = RunFolder(options.run)
    read_checkpoint(folder.last_checkpoint)  # before a repository is created for it
    prepare_repository(options.repository)
    print(f"published {publish_run(folder, options.repository)}")


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
