"""Exact top-1 and top-5 of a checkpoint on a .beton, each image counted once.

python evaluate.py --checkpoint runs/g5_1gpu --data val.beton
python evaluate.py --checkpoint runs/g5_1gpu --data val.beton --both --per-class --confusion confusion.png
python evaluate.py --weights torchvision --arch resnet50 --data val.beton
torchrun --nproc_per_node=4 evaluate.py --checkpoint runs/g5_4gpu/checkpoints/last.pt --data val.beton
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rebar.cli import run_command
from rebar.config import build_config, option, parse_config, section
from rebar.errors import RebarError
from rebar.loading import Loader, Normalizer
from rebar.loading.device import IMAGENET_MEAN, IMAGENET_STD
from rebar.loading.imagenet import DataConfig, build_val_loader
from rebar.models.resnets import build_model, to_device
from rebar.optim.averaging import weights_to_evaluate
from rebar.reporting import console
from rebar.reporting.plots import class_lines, plot_confusion
from rebar.reporting.run_folder import RunFolder
from rebar.training.checkpoint import read_checkpoint
from rebar.training.config import TrainConfig
from rebar.training.distributed import World, join_world
from rebar.training.error_hints import evaluation_error_hints
from rebar.training.evaluate import evaluate
from rebar.training.execution import Precision, input_dtype, resolve_precision
from rebar.training.export import export_weights, read_weights
from rebar.training.state import check_same_classes


@dataclass(frozen=True)
class EvaluateSection:
    """Evaluation."""

    checkpoint: str = option("", help="checkpoint file, or the folder of a run")
    weights: str = option(
        "", help="instead of a checkpoint: a torchvision state_dict (.pth), .safetensors, or 'torchvision'"
    )
    arch: str = option("resnet50", help="classifier that --weights are of, as --arch of train_imagenet.py")
    use_blurpool: bool = option(False, help="--weights were trained with BlurPool")
    data: str = option(required=True, help="the .beton to evaluate on, or a source: a folder, tar, hf:NAME, ...")
    resolution: int = option(0, help="pixels; 0: the validation resolution of the training run", minimum=0)
    both: bool = option(False, help="evaluate at 224 and at 256 px, as results are published")
    crop_ratio: float = option(0, help="share of the shorter side; 0: the training run's", minimum=0, maximum=1)
    batch_size: int = option(0, help="per process; 0: the validation batch size of the training run", minimum=0)
    num_workers: int = option(0, help="decoding threads per process; 0: the cores divided by the processes", minimum=0)
    precision: Precision = option("auto", help="of the forward pass; auto: as it was trained")
    per_class: bool = option(False, help="also the accuracy of each class, the worst first")
    confusion: str = option("", help="also write an image of which classes are taken for which to this .png")
    export: str = option("", help="also write the weights alone: .pth for torchvision, .safetensors, or .onnx")


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything ``evaluate.py`` can be told."""

    evaluate: EvaluateSection = section(EvaluateSection)


def main(argv: Sequence[str]) -> None:
    """Load the checkpoint, rebuild its model, evaluate."""
    config = parse_config(
        EvaluateConfig,
        argv,
        description="Exact top-1 and top-5 of a checkpoint.",
        example="python evaluate.py --checkpoint runs/g5_1gpu --data val.beton",
    )
    with join_world() as world:
        evaluate_checkpoint(config.evaluate, world)


def evaluate_checkpoint(options: EvaluateSection, world: World) -> None:
    """The whole evaluation, from the weights to the printed lines."""
    trained = load_weights(options) if options.weights else load_checkpoint(options)
    model = to_device(trained.model, world.device)
    asked = trained.config.training.precision if options.precision == "auto" else options.precision
    precision = resolve_precision(asked, world.device)
    loader = build_val_loader(
        DataConfig(val_dataset=options.data, num_workers=options.num_workers),
        batch_size=options.batch_size or trained.config.validation.batch_size,
        crop_ratio=options.crop_ratio or trained.config.validation.crop_ratio,
        distributed=world.distributed,
        pin_memory=world.device.type == "cuda",
    )
    num_classes = trained.num_classes
    check_classes(options, loader, trained.class_names, num_classes)

    resolutions = [224, 256] if options.both else [options.resolution or trained.config.validation.resolution]
    counted = bool(options.per_class or options.confusion)
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
                mirror=True,
                confusion_of=num_classes if counted else 0,
            )
        if world.is_main:
            print(f"{result.num_samples:,} images at {resolution} px: {console.accuracy_line(result.metrics())}")
    if world.is_main:
        if result.confusion is not None:
            names = list(loader.beton.class_names or map(str, range(num_classes)))
            names += [str(label) for label in range(len(names), num_classes)]
            show_classes(options, result.confusion, names)
        if options.export:
            facts = {
                "arch": trained.config.model.arch,
                "num_classes": num_classes,
                "use_blurpool": trained.config.training.use_blurpool,
                "mean": list(trained.mean),
                "std": list(trained.std),
            }
            export_weights(Path(options.export), model.state_dict(), facts)
            print(f"weights: {options.export}")


@dataclass(frozen=True)
class Trained:
    """A network, and how it is to be evaluated."""

    model: nn.Module
    config: TrainConfig
    """What it was trained with, or the usual."""
    num_classes: int
    class_names: Sequence[str] = ()
    """Empty where they are not known."""
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


def load_checkpoint(options: EvaluateSection) -> Trained:
    """The network of a checkpoint of ours, the configuration it was trained with, and its classes."""
    if not options.checkpoint:
        raise RebarError("give --checkpoint, or --weights with --arch")
    path = Path(options.checkpoint)
    path = RunFolder(path).last_checkpoint if path.is_dir() else path
    checkpoint = read_checkpoint(path)
    trained = build_config(TrainConfig, checkpoint["config"], where=str(path))
    model = build_model(
        checkpoint["arch"],
        num_classes=checkpoint["num_classes"],
        use_blurpool=trained.training.use_blurpool,
    )
    model.load_state_dict(weights_to_evaluate(checkpoint))
    facts = (checkpoint[name] for name in ("num_classes", "class_names", "mean", "std"))
    return Trained(model, trained, *facts)


def load_weights(options: EvaluateSection) -> Trained:
    """A network of other weights, and the usual way to evaluate it; its classes have no names."""
    if options.checkpoint:
        raise RebarError("give --checkpoint or --weights, not both")
    trained = build_config(TrainConfig, {"model.arch": options.arch, "training.use_blurpool": options.use_blurpool})
    if options.weights == "torchvision":
        return Trained(build_model(options.arch, num_classes=1000, pretrained=True), trained, 1000)
    weights = read_weights(Path(options.weights))
    heads = [value for name, value in weights.items() if name.endswith("weight") and value.ndim == 2]
    if not heads:
        raise RebarError(f"{options.weights} has no linear layer: it holds no weights of a {options.arch}")
    model = build_model(options.arch, num_classes=len(heads[-1]), use_blurpool=options.use_blurpool)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).splitlines()[-1], 160, placeholder=" …")
        raise RebarError(f"{options.weights} does not fit a {options.arch} (--arch names another): {reason}") from None
    return Trained(model, trained, len(heads[-1]))


def check_classes(options: EvaluateSection, loader: Loader, class_names: Sequence[str], num_classes: int) -> None:
    """Raise RebarError where the data's classes are not the model's."""
    if loader.beton.class_names is not None and class_names:
        check_same_classes(list(class_names), list(loader.beton.class_names), options.checkpoint)
    if loader.beton.num_classes > num_classes:
        raise RebarError(
            f"{options.data} has {loader.beton.num_classes} classes, the model of "
            f"{options.checkpoint or options.weights} only {num_classes}"
        )


def show_classes(options: EvaluateSection, confusion: NDArray[np.int64], names: list[str]) -> None:
    """Print and draw what was asked for of the classes."""
    if options.per_class:
        print("\n".join(class_lines(confusion, names)))
    if options.confusion:
        plot_confusion(confusion, names, Path(options.confusion))
        print(f"confusion: {options.confusion}")


def command() -> None:
    """Run as the console command ``rebar-evaluate``."""
    run_command(main)


if __name__ == "__main__":
    command()
