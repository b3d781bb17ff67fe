"""Compute the exact top-1 and top-5 accuracy of a checkpoint on a dataset.

python evaluate.py --checkpoint runs/g5_1gpu --data val.beton
python evaluate.py --checkpoint runs/g5_1gpu --data val.beton --both --per-class --confusion confusion.png
python evaluate.py --weights torchvision --arch resnet50 --data val.beton
torchrun --nproc_per_node=4 evaluate.py --checkpoint runs/g5_4gpu/checkpoints/last.pt --data val.beton
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebar.cli import count, run_command, start_script

# importing torch takes seconds
start_script(__name__, "rebar-evaluate", "rebar.training.evaluate_options:parse_command_line")

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rebar.config import build_config
from rebar.errors import RebarError
from rebar.loading import Loader, Normalizer
from rebar.loading.imagenet import build_val_loader
from rebar.loading.options import DataConfig
from rebar.loading.prefetch import IMAGENET_MEAN, IMAGENET_STD
from rebar.models.build import build_model, to_device
from rebar.optim.averaging import weights_to_evaluate
from rebar.reporting import console
from rebar.reporting.plots import plot_confusion
from rebar.reporting.run_folder import RunFolder
from rebar.storage.files import check_output
from rebar.training.checkpoint import read_checkpoint
from rebar.training.config import TrainConfig
from rebar.training.distributed import World, join_world
from rebar.training.error_hints import evaluation_error_hints
from rebar.training.evaluate_options import EvaluateSection, default_data, parse_command_line
from rebar.training.evaluation import evaluate
from rebar.training.execution import input_dtype, resolve_precision
from rebar.training.state import check_same_classes
from rebar.training.weights import check_export_format, export_weights, read_weights


def main(argv: Sequence[str]) -> None:
    """Parse the command line and evaluate."""
    options = parse_command_line(argv)
    options = dataclasses.replace(options, data=options.data or default_data())
    with join_world() as world:
        evaluate_checkpoint(options, world)


def evaluate_checkpoint(options: EvaluateSection, world: World) -> None:
    """Load a model, evaluate it, print the results and write the requested files."""
    check_destinations(options)
    trained = load_weights(options) if options.weights else load_checkpoint(options)
    model = to_device(trained.model, world.device)
    requested = trained.config.training.precision if options.precision == "auto" else options.precision
    precision = resolve_precision(requested, world.device)
    loader = build_val_loader(
        DataConfig(
            val_dataset=options.data,
            num_workers=options.num_workers,
            data_subset=options.data_subset,
            image_key=options.image_key,
        ),
        batch_size=options.batch_size or trained.config.validation.batch_size,
        crop_ratio=options.crop_ratio or trained.config.validation.crop_ratio,
        distributed=world.distributed,
        pin_memory=world.device.type == "cuda",
    )
    num_classes = trained.num_classes
    check_classes(options, loader, trained.class_names, num_classes)

    resolutions = [224, 256] if options.both else [options.resolution or trained.config.validation.resolution]
    needs_confusion = bool(options.per_class or options.confusion)
    for resolution in resolutions:
        batches = loader.epoch(0, resolution)
        with evaluation_error_hints(batch_size=loader.batch_size, option="--batch-size"):
            result = evaluate(
                model,
                Normalizer(world.device, input_dtype(precision), mean=trained.mean, std=trained.std).each(
                    console.progress(batches, "evaluation", total=len(loader), enabled=world.is_main)
                ),
                world=world,
                precision=precision,
                flip_tta=True,
                confusion_classes=num_classes if needs_confusion else 0,
            )
        if world.is_main:
            print(f"{count(result.num_samples, 'image')} at {resolution} px: {console.accuracy_line(result.metrics())}")
    if world.is_main:
        if result.confusion is not None:
            names = list(loader.beton.class_names or map(str, range(num_classes)))
            names += [str(label) for label in range(len(names), num_classes)]
            report_classes(options, result.confusion, names)
        if options.export:
            metadata = {
                "arch": trained.config.model.arch,
                "num_classes": num_classes,
                "use_blurpool": trained.config.training.use_blurpool,
                "mean": list(trained.mean),
                "std": list(trained.std),
            }
            export_weights(Path(options.export), model.state_dict(), metadata)
            print(f"weights: {options.export}")


def check_destinations(options: EvaluateSection) -> None:
    """Raise RebarError if the requested files could not be written after the evaluation."""
    for path in (options.confusion, options.export):
        if path:
            check_output(Path(path), overwrite=options.overwrite)
    if options.export:
        check_export_format(Path(options.export).suffix)


DEFAULT_ARCH = "resnet50"
"""The architecture of weights without metadata."""


@dataclass(frozen=True)
class TrainedModel:
    """A model and its training configuration, or the default one. ``class_names`` is empty if unknown."""

    model: nn.Module
    config: TrainConfig
    num_classes: int
    class_names: Sequence[str] = ()
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


def load_checkpoint(options: EvaluateSection) -> TrainedModel:
    """Load the model, configuration and classes of a checkpoint."""
    if not options.checkpoint:
        raise RebarError(
            "evaluate: no weights to evaluate. Pass --checkpoint, or --weights with --arch.",
            code="config-missing-option",
        )
    path = Path(options.checkpoint)
    if path.is_dir():
        path = RunFolder(path).checkpoint_to_resume("auto") or RunFolder(path).last_checkpoint
    checkpoint = read_checkpoint(path)
    trained = build_config(TrainConfig, checkpoint["config"], origin=str(path))
    model = build_model(
        checkpoint["arch"],
        num_classes=checkpoint["num_classes"],
        use_blurpool=trained.training.use_blurpool,
    )
    model.load_state_dict(weights_to_evaluate(checkpoint))
    return TrainedModel(model, trained, *(checkpoint[name] for name in ("num_classes", "class_names", "mean", "std")))


def load_weights(options: EvaluateSection) -> TrainedModel:
    """Load weights that are not a Rebar checkpoint, with the default configuration and unknown class names."""
    if options.checkpoint:
        raise RebarError("evaluate: --checkpoint and --weights are both given. Remove one.", code="config-conflict")
    if options.weights == "torchvision":
        options = dataclasses.replace(options, arch=options.arch or DEFAULT_ARCH)
        trained = _default_config(options, use_blurpool=options.use_blurpool)
        return TrainedModel(build_model(options.arch, num_classes=1000, pretrained=True), trained, 1000)
    imported = read_weights(Path(options.weights))
    options = dataclasses.replace(options, arch=options.arch or imported.arch or DEFAULT_ARCH)
    use_blurpool = options.use_blurpool or imported.use_blurpool
    heads = [value for name, value in imported.tensors.items() if name.endswith("weight") and value.ndim == 2]
    if not heads:
        raise _mismatch(options, "the weights have no linear layer")
    model = build_model(options.arch, num_classes=len(heads[-1]), use_blurpool=use_blurpool)
    try:
        model.load_state_dict(imported.tensors)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).splitlines()[-1].rstrip("."), 160, placeholder=" …")
        raise _mismatch(options, reason) from None
    config = _default_config(options, use_blurpool=use_blurpool)
    return TrainedModel(model, config, len(heads[-1]), mean=imported.mean, std=imported.std)


def _default_config(options: EvaluateSection, *, use_blurpool: bool) -> TrainConfig:
    return build_config(TrainConfig, {"model.arch": options.arch, "training.use_blurpool": use_blurpool})


def _mismatch(options: EvaluateSection, reason: str) -> RebarError:
    message = f"{options.weights}: not weights of a {options.arch}: {reason}. Pass their architecture with --arch."
    return RebarError(message, code="weights-mismatch")


def check_classes(options: EvaluateSection, loader: Loader, class_names: Sequence[str], num_classes: int) -> None:
    """Raise RebarError if the data and the model have different classes."""
    if loader.beton.class_names is not None and class_names:
        check_same_classes(list(class_names), list(loader.beton.class_names), options.checkpoint)
    if loader.beton.num_classes > num_classes:
        raise RebarError(
            f"{options.data}: {count(loader.beton.num_classes, 'class', 'classes')}, but the model of "
            f"{options.checkpoint or options.weights} has {num_classes}. Pass the dataset that it was trained on.",
            code="data-class-mismatch",
        )


def report_classes(options: EvaluateSection, confusion: NDArray[np.int64], names: list[str]) -> None:
    """Print the accuracy per class and write the confusion matrix, as requested."""
    if options.per_class:
        print("\n".join(console.class_lines(confusion, names)))
    if options.confusion:
        plot_confusion(confusion, names, Path(options.confusion))
        print(f"confusion: {options.confusion}")


def command() -> None:
    """Run as the console command ``rebar-evaluate``."""
    run_command(main)


if __name__ == "__main__":
    command()
