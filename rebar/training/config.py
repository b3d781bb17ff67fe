"""All knobs of a training run: the schema of the files in ``rn50_configs/``.

Names and defaults are ffcv-imagenet's where it has them, so that its configs run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rebar.augment.policy import RegularizationConfig
from rebar.config import option, section
from rebar.loading.imagenet import DataConfig
from rebar.models.resnets import ModelConfig
from rebar.optim.averaging import AveragingConfig
from rebar.optim.optimizers import OptimizerConfig, OptimizerName
from rebar.optim.schedules import LearningRateConfig
from rebar.reporting.log import LoggingConfig
from rebar.training.checkpoint import CheckpointConfig
from rebar.training.evaluate import ValidationConfig
from rebar.training.execution import ExecutionConfig, Precision
from rebar.training.losses import LossConfig
from rebar.training.resolution import ResolutionConfig


@dataclass(frozen=True)
class TrainingConfig:
    """Training."""

    eval_only: bool = option(False, help="evaluate the checkpoint (or pretrained model) and stop")
    batch_size: int = option(512, help="batch size per process", minimum=1)
    epochs: int = option(30, help="epochs", minimum=1)
    optimizer: OptimizerName = option("sgd", help="sgdw: decoupled decay; lamb, lars: very large batches")
    momentum: float = option(0.9, help="momentum of sgd, sgdw and lars", minimum=0, maximum=1)
    weight_decay: float = option(4e-5, help="weight decay of all but biases and normalisation", minimum=0)
    label_smoothing: float = option(0.1, help="label smoothing", minimum=0, maximum=1)
    use_blurpool: bool = option(False, help="blur before strided convolutions")
    precision: Precision = option("auto", help="of the forward pass; auto: fp16 on a GPU, 32 on the CPU")
    decay_downsample_bn: bool = option(
        False, help="choose what decays by name as ffcv-imagenet does, to compare with it"
    )
    max_steps: int = option(
        0, help="stop after so many steps of the whole run, evaluate, finish; 0: no limit", minimum=0
    )
    budget_hours: float = option(
        0.0, help="stop after so many hours of all attempts together, evaluate, finish; 0: no limit", minimum=0
    )
    target_top1: float = option(
        0.0, help="finish when validation top-1 reaches this (0.759 or 75.9); 0: no target", minimum=0, maximum=100
    )
    dry_run: bool = option(
        False, help="try everything but the epochs: data, steps, evaluation; estimate time and memory"
    )
    price_per_hour: float = option(0.0, help="dollars an hour of what this run rents, for --dry-run", minimum=0)
    find_lr: bool = option(False, help="instead of training, a learning rate range test (see scripts/lr_range_test.py)")
    find_lr_steps: int = option(100, help="steps of the range test", minimum=10)
    seed: int = option(0, help="seed of weights, order and augmentation", minimum=0, maximum=2**63 - 1)


@dataclass(frozen=True)
class DistributedConfig:
    """Processes (torchrun starts them)."""

    world_size: int = option(0, help="processes the recipe is written for; a warning if there are others", minimum=0)


@dataclass(frozen=True)
class TrainConfig:
    """Everything ``train_imagenet.py`` can be told."""

    model: ModelConfig = section(ModelConfig)
    resolution: ResolutionConfig = section(ResolutionConfig)
    data: DataConfig = section(DataConfig)
    lr: LearningRateConfig = section(LearningRateConfig)
    training: TrainingConfig = section(TrainingConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    loss: LossConfig = section(LossConfig)
    regularization: RegularizationConfig = section(RegularizationConfig)
    averaging: AveragingConfig = section(AveragingConfig)
    execution: ExecutionConfig = section(ExecutionConfig)
    validation: ValidationConfig = section(ValidationConfig)
    logging: LoggingConfig = section(LoggingConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    dist: DistributedConfig = section(DistributedConfig)

    ignored_keys: ClassVar[Mapping[str, str]] = {
        "training.bn_wd": "ffcv-imagenet never read it either",
        "data.gpu": "ffcv-imagenet never read it either",
        "training.distributed": "torchrun says how many processes there are",
        "dist.address": "torchrun says where the processes meet",
        "dist.port": "torchrun says where the processes meet",
    }
