"""Exact top-1 and top-5 of a checkpoint on a .beton, each picture counted once.

python evaluate.py --checkpoint runs/g5_1gpu --data val.beton
torchrun --nproc_per_node=4 evaluate.py --checkpoint runs/g5_4gpu/checkpoints/last.pt --data val.beton
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rebar.cli import run_command
from rebar.config import build_config, knob, parse_config, section
from rebar.errors import RebarError
from rebar.loading import DataConfig, Normalizer, build_val_loader
from rebar.loading.device import IMAGENET_MEAN, IMAGENET_STD
from rebar.reporting import console
from rebar.reporting.run_folder import RunFolder
from rebar.training.averaging import weights_to_evaluate
from rebar.training.checkpoint import read_checkpoint
from rebar.training.config import TrainConfig
from rebar.training.distributed import World, join_world
from rebar.training.evaluation import evaluate
from rebar.training.model import build_model, to_device
from rebar.training.precision import Precision, resolve_precision
from rebar.training.state import check_fits


@dataclass(frozen=True)
class EvaluateSection:
    """Evaluation."""

    checkpoint: str = knob(required=True, help="checkpoint file, or the folder of a run")
    data: str = knob(required=True, help="the .beton to evaluate on, or a source: a folder, tar, hf:NAME, ...")
    resolution: int = knob(0, help="pixels; 0: the validation resolution of the training run", minimum=0)
    crop_ratio: float = knob(0, help="share of the shorter side; 0: the training run's", minimum=0, maximum=1)
    batch_size: int = knob(0, help="per process; 0: the validation batch size of the training run", minimum=0)
    num_workers: int = knob(0, help="decoding threads per process; 0: the cores divided by the processes", minimum=0)
    precision: Precision = knob("auto", help="of the forward pass; auto: fp16 on a GPU, 32 on the CPU")


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
    """The whole evaluation, from the checkpoint to the printed line."""
    path = Path(options.checkpoint)
    path = RunFolder(path).last_checkpoint if path.is_dir() else path
    checkpoint = read_checkpoint(path)
    trained = build_config(TrainConfig, checkpoint["config"], where=str(path))

    loader = build_val_loader(
        DataConfig(val_dataset=options.data, num_workers=options.num_workers),
        batch_size=options.batch_size or trained.validation.batch_size,
        crop_ratio=options.crop_ratio or trained.validation.crop_ratio,
        distributed=world.distributed,
        pin_memory=world.device.type == "cuda",
    )
    if loader.beton.class_names is not None:
        names = list(loader.beton.class_names)
        check_fits(checkpoint, path, arch=trained.model.arch, class_names=names)
    if loader.beton.num_classes > checkpoint["num_classes"]:
        raise RebarError(
            f"{options.data} has {loader.beton.num_classes} classes, the model of {path} only "
            f"{checkpoint['num_classes']}"
        )

    resolution = options.resolution or trained.validation.resolution
    batches = loader.epoch(0, resolution)
    result = evaluate(
        restore_model(checkpoint, trained, world),
        Normalizer(
            world.device,
            mean=checkpoint.get("mean", IMAGENET_MEAN),
            std=checkpoint.get("std", IMAGENET_STD),
        ).each(console.progress(batches, "evaluation", total=len(loader), enabled=world.is_main)),
        world=world,
        precision=resolve_precision(options.precision, world.device),
        mirror=True,
    )
    if world.is_main:
        print(f"{result.num_samples:,} pictures at {resolution} px: {console.accuracy_line(result.metrics())}")


def restore_model(checkpoint: dict[str, Any], trained: TrainConfig, world: World) -> nn.Module:
    """The checkpoint's network on this process's device."""
    model = build_model(
        checkpoint["arch"],
        num_classes=checkpoint["num_classes"],
        use_blurpool=trained.training.use_blurpool,
    )
    model.load_state_dict(weights_to_evaluate(checkpoint))
    return to_device(model, world.device)


if __name__ == "__main__":
    run_command(main)
