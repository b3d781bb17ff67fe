"""The options of ``train_imagenet.py`` and of the config files in ``rn50_configs/``.

Options that ffcv-imagenet also has use its names and defaults, so its config files work unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rebar.augment.policy import RegularizationConfig
from rebar.config import option, section
from rebar.loading.imagenet import DataConfig
from rebar.models.build import ModelConfig
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

    eval_only: bool = option(False, help="evaluate the checkpoint or the pretrained model, and exit")
    batch_size: int = option(512, help="batch size per GPU", minimum=1)
    epochs: int = option(30, help="number of epochs", minimum=1)
    optimizer: OptimizerName = option(
        "sgd", help="sgdw: SGD with decoupled weight decay; lamb, lars: for large batches"
    )
    momentum: float = option(0.9, help="momentum of sgd, sgdw and lars", minimum=0, maximum=1)
    weight_decay: float = option(4e-5, help="weight decay, except for biases and normalization layers", minimum=0)
    label_smoothing: float = option(0.1, help="label smoothing", minimum=0, maximum=1)
    use_blurpool: bool = option(False, help="BlurPool: blur before strided convolutions")
    precision: Precision = option("auto", help="precision of the forward pass; auto: fp16 on a GPU, 32 on the CPU")
    decay_downsample_bn: bool = option(
        False, help="apply weight decay by parameter name like ffcv-imagenet, for comparisons"
    )
    max_steps: int = option(
        0, help="finish after N steps of the run, resumed ones included, with an evaluation; 0: no limit", minimum=0
    )
    budget_hours: float = option(
        0.0, help="finish after N hours of the run, all attempts included, with an evaluation; 0: no limit", minimum=0
    )
    target_top1: float = option(
        0.0, help="finish when validation top-1 reaches this (0.759 or 75.9); 0: no target", minimum=0, maximum=100
    )
    dry_run: bool = option(
        False, help="check data, destinations, a few steps and one evaluation batch; estimate time and memory"
    )
    price_per_hour: float = option(0.0, help="price of the hardware for the estimate of --dry-run, $/h", minimum=0)
    find_lr: bool = option(False, help="run a learning rate range test instead of training")
    find_lr_steps: int = option(100, help="steps of the learning rate range test", minimum=10)
    seed: int = option(0, help="seed of weights, order and augmentation", minimum=0, maximum=2**63 - 1)


@dataclass(frozen=True)
class DistributedConfig:
    """Distributed training (torchrun starts the ranks)."""

    world_size: int = option(0, help="number of ranks that the recipe is for; warns if it differs", minimum=0)


@dataclass(frozen=True)
class TrainConfig:
    """All options of ``train_imagenet.py``."""

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
        "training.bn_wd": "ffcv-imagenet does not read it either",
        "data.gpu": "ffcv-imagenet does not read it either",
        "training.distributed": "torchrun sets the number of ranks",
        "dist.address": "torchrun sets the rendezvous address",
        "dist.port": "torchrun sets the rendezvous address",
    }
