"""The options of ``train_imagenet.py`` and of the config files in ``rn50_configs/``.

Options that ffcv-imagenet also has use its names and defaults, so its config files work unchanged.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rebar.augment.options import RegularizationConfig
from rebar.config import ConfigError, Implied, option, section
from rebar.loading.options import IMAGENET_ON_HUB, DataConfig, ResolutionConfig
from rebar.models.options import ModelConfig
from rebar.optim.options import AveragingConfig, OptimizerConfig, OptimizerName
from rebar.optim.schedules import LearningRateConfig
from rebar.reporting.log import LoggingConfig
from rebar.training.aliases import FLAG_HINTS
from rebar.training.options import PRECISION_SYNONYMS, ExecutionConfig, LossConfig, Precision
from rebar.training.translation import translate_key


@dataclass(frozen=True)
class TrainingConfig:
    """Training."""

    eval_only: bool = option(False, help="evaluate the checkpoint or the pretrained model, and exit")
    batch_size: int = option(512, help="batch size per GPU", minimum=1)
    global_batch_size: int = option(
        0, help="batch size of all GPUs together; sets batch_size; 0: batch_size times the number of GPUs", minimum=0
    )
    epochs: int = option(30, help="number of epochs", minimum=1, unit="ep")
    optimizer: OptimizerName = option(
        "sgd",
        help="sgdw: SGD with decoupled weight decay; lamb, lars: for large batches",
        synonyms={"momentum": "sgd"},
    )
    momentum: float = option(0.9, help="momentum of sgd, sgdw and lars", minimum=0, maximum=1)
    weight_decay: float = option(4e-5, help="weight decay, except for biases and normalization layers", minimum=0)
    label_smoothing: float = option(0.1, help="label smoothing", minimum=0, maximum=1)
    use_blurpool: bool = option(False, help="BlurPool: blur before strided convolutions")
    precision: Precision = option(
        "auto",
        help="precision of the forward pass; auto: fp16 on a GPU, 32 on the CPU",
        synonyms=PRECISION_SYNONYMS,
    )
    decay_downsample_bn: bool = option(
        False, help="apply weight decay by parameter name like ffcv-imagenet, for comparisons"
    )
    max_steps: int = option(
        0,
        help="finish after N steps of the run, resumed ones included, with an evaluation; 0: no limit",
        minimum=0,
        unit="ba",
    )
    budget_hours: float = option(
        0.0, help="finish after N hours of the run, all attempts included, with an evaluation; 0: no limit", minimum=0
    )
    target_top1: float = option(
        0.0, help="finish when validation top-1 reaches this (0.759 or 75.9); 0: no target", minimum=0, maximum=100
    )
    dry_run: bool = option(
        False,
        help="check data, destinations, a few steps and one evaluation batch; report time, memory and what limits the "
        "speed",
    )
    price_per_hour: float = option(0.0, help="price of the hardware for the estimate of --dry-run, $/h", minimum=0)
    find_lr: bool = option(False, help="run a learning rate range test instead of training")
    find_lr_steps: int = option(100, help="steps of the learning rate range test", minimum=10)
    find_lr_min: float = option(1e-5, help="lowest rate of the learning rate range test", minimum=1e-12)
    find_lr_max: float = option(10.0, help="highest rate of the learning rate range test", minimum=1e-12)
    seed: int = option(0, help="seed of weights, order and augmentation", minimum=0, maximum=2**63 - 1)

    def __post_init__(self) -> None:
        if self.find_lr_min >= self.find_lr_max:
            raise ConfigError(
                f"training.find_lr_min = {self.find_lr_min:g} is not below find_lr_max = {self.find_lr_max:g}.",
                code="config-invalid-value",
            )


@dataclass(frozen=True)
class ValidationConfig:
    """Validation."""

    batch_size: int = option(512, help="batch size per rank", minimum=1)
    resolution: int = option(224, help="resolution in px", minimum=1, short=False)
    final_resolutions: str = option(
        "", help="evaluate the finished run at these resolutions in px, separated by commas: 224,256", metavar="N,N"
    )
    crop_ratio: float = option(
        0.875, help="side of the center crop, relative to the shorter side of the image", minimum=0.01, maximum=1
    )
    lr_tta: bool = option(True, help="flip TTA: also average the predictions for the image and its horizontal flip")

    def __post_init__(self) -> None:
        invalid = [word for word in self._final_words() if not word.isdecimal() or int(word) == 0]
        if invalid:
            raise ConfigError(
                f"validation.final_resolutions: '{invalid[0]}' is not a resolution. Use numbers such as 224,256.",
                code="config-invalid-value",
            )

    def _final_words(self) -> list[str]:
        return [word.strip() for word in self.final_resolutions.split(",") if word.strip()]

    @property
    def final(self) -> tuple[int, ...]:
        """``final_resolutions`` as numbers, without duplicates."""
        return tuple(dict.fromkeys(map(int, self._final_words())))


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints and resuming."""

    resume: str = option(
        "auto",
        help="auto, last or true: resume from the run folder's checkpoint; none or false: start from scratch; or a "
        "checkpoint file or run folder to start from",
        const="auto",
        metavar="PATH",
    )
    overwrite: bool = option(
        False, help="with --resume none: delete an earlier run in the folder; with a file: restart from the file"
    )
    every_steps: int = option(0, help="also save within an epoch, every N steps; 0: never", minimum=0)
    every_minutes: float = option(10.0, help="also save within an epoch, every N minutes; 0: never", minimum=0)
    keep_best: bool = option(True, help="keep best.pt, the checkpoint with the highest validation top-1")
    keep_every: int = option(0, help="keep the checkpoint of every Nth epoch; 0: none", minimum=0)
    export: Literal["none", "safetensors", "torchvision", "both", "onnx", "all"] = option(
        "none",
        help="at the end also write the evaluated weights: weights.safetensors, weights.pth (torchvision), both of "
        "them, weights.onnx, or all",
    )
    reset_schedule: bool = option(
        False, help="when resuming with other --epochs: reach the schedule of that many epochs without a jump"
    )
    freeze_lr: float | None = option(
        None, help="constant learning rate; without a value, the last one of the resumed run", minimum=0, const="0"
    )
    spot_notice: Literal["auto", "on", "off"] = option(
        "auto", help="poll for EC2's spot interruption notice; auto: on EC2 instances only"
    )
    spot_poll_seconds: float = option(5.0, help="interval between two polls, seconds", minimum=0.1)


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

    common: ClassVar[tuple[str, ...]] = (
        "data.train_dataset",
        "data.val_dataset",
        "data.data_subset",
        "data.num_workers",
        "model.arch",
        "training.epochs",
        "training.batch_size",
        "training.global_batch_size",
        "lr.lr",
        "training.precision",
        "execution.accumulate",
        "logging.folder",
        "logging.wandb",
        "checkpoint.resume",
        "training.dry_run",
        "training.find_lr",
    )
    """The options that ``--help`` shows."""
    ignored_keys: ClassVar[Mapping[str, str]] = {
        "training.bn_wd": "ffcv-imagenet does not read it either",
        "data.gpu": "ffcv-imagenet does not read it either",
        "training.distributed": "torchrun sets the number of ranks",
        "dist.address": "torchrun sets the rendezvous address",
        "dist.port": "torchrun sets the rendezvous address",
    }

    translate_key: ClassVar[Callable[[str, Any], dict[str, Any] | None]] = staticmethod(translate_key)
    flag_hints: ClassVar[Mapping[str, str]] = FLAG_HINTS
    implied: ClassVar[tuple[Implied, ...]] = (
        Implied("training.batch_size", "training.global_batch_size", lambda batch: 0),
        Implied("lr.base_batch", "lr.lr_scaling", lambda batch: "linear"),
        Implied("lr.lr", "lr.lr_scaling", lambda lr: "none"),  # a recipe's scaling is for the recipe's lr
        Implied("regularization.mixup_alpha", "regularization.use_mixup", lambda alpha: alpha > 0),
        Implied("regularization.cutmix_alpha", "regularization.use_cutmix", lambda alpha: alpha > 0),
        Implied("logging.wandb_project", "logging.wandb", lambda project: project != ""),
        Implied("logging.wandb_name", "logging.wandb", lambda name: name != ""),
        Implied("logging.wandb_tags", "logging.wandb", lambda tags: tags != ""),
    )


@dataclass(frozen=True)
class UnusedWhen:
    """An option that has no effect if ``applies(config)``. ``reason`` completes the warning."""

    option: str
    reason: str
    applies: Callable[[TrainConfig], bool]


RULES = (
    UnusedWhen("training.momentum", "with training.optimizer lamb", lambda c: c.training.optimizer == "lamb"),
    *(
        UnusedWhen(f"resolution.{name}", "without max_res above min_res", lambda c: not _resizes(c))
        for name in ("start_ramp", "end_ramp", "round_to")
    ),
    UnusedWhen(
        "data.min_scale", "with regularization.augmentation none", lambda c: c.regularization.augmentation == "none"
    ),
    UnusedWhen("data.use_hf", "with given datasets", lambda c: _are_given(c.data.train_dataset, c.data.val_dataset)),
    *(
        UnusedWhen(f"model.{name}", "with model.pretrained", lambda c: c.model.pretrained)
        for name in ("initialization", "zero_init_residual")
    ),
    UnusedWhen("checkpoint.overwrite", "without --resume none or FILE", lambda c: c.checkpoint.resume == "auto"),
    UnusedWhen("checkpoint.spot_poll_seconds", "with spot_notice off", lambda c: c.checkpoint.spot_notice == "off"),
    UnusedWhen("training.price_per_hour", "without --dry-run", lambda c: not c.training.dry_run),
    *(
        UnusedWhen(f"training.{name}", "without --find-lr", lambda c: not c.training.find_lr)
        for name in ("find_lr_steps", "find_lr_min", "find_lr_max")
    ),
)
"""Rules that involve several sections. A rule within a section is one of the section's ``conditions``."""


def _resizes(config: TrainConfig) -> bool:
    return config.resolution.max_res > config.resolution.min_res


def _are_given(*datasets: str) -> bool:
    """Return whether all datasets are given explicitly, so that use_hf has no effect."""
    return all(name not in ("", IMAGENET_ON_HUB) for name in datasets)


def unused_in_section(section: str, config: Any, conditions: Mapping[str, tuple[str, bool]]) -> Iterator[str]:
    """Yield a message for each option that differs from its default although its condition is not met.

    ``conditions`` maps an option's name to the text of its condition and whether it is met.
    """
    for name, (condition, is_met) in conditions.items():
        if not is_met and not _is_default(config, name):
            yield f"{section}.{name} = {getattr(config, name)} has no effect without {condition}"


def unused_options(config: TrainConfig) -> Iterator[str]:
    """Yield a message for each option of a run that has no effect."""
    yield from unused_in_section("lr", config.lr, config.lr.conditions())
    yield from unused_in_section("optimizer", config.optimizer, config.optimizer.conditions(config.training.optimizer))
    for section_name in ("loss", "regularization", "averaging", "execution"):
        section = getattr(config, section_name)
        yield from unused_in_section(section_name, section, section.conditions())
    for rule in RULES:
        section_name, _, name = rule.option.partition(".")
        section = getattr(config, section_name)
        if rule.applies(config) and not _is_default(section, name):
            yield f"{rule.option} = {getattr(section, name)} has no effect {rule.reason}"


def _is_default(section: Any, name: str) -> bool:
    defaults = {field.name: field.default for field in dataclasses.fields(section)}
    return bool(getattr(section, name) == defaults[name])
