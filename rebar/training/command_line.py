"""Parse the command line of ``train_imagenet.py``, with the environment variables and defaults that complete it.

Imports neither torch nor numba, so that ``--help`` and ``--print-config`` are answered at once.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rebar.cli import note, warn
from rebar.config import ConfigError, changed_options, config_name, given_value, options_of, parse_bool, parse_config
from rebar.config.options import short_names
from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.huggingface import has_token, steps_to_access
from rebar.training import aliases
from rebar.training.config import IMAGENET_ON_HUB, TrainConfig
from rebar.training.translation import translate

DEFAULT_RECIPE = "rn50_configs/rn50_16_epochs.yaml"
EXAMPLES = (
    "python train_imagenet.py --config-file rn50_configs/g5_1gpu.yaml",
    "torchrun --nproc_per_node=4 train_imagenet.py --config-file rn50_configs/g5_4gpu.yaml --epochs 32",
    "python train_imagenet.py --train-dataset train.beton --val-dataset val.beton --batch-size 256 --dry-run",
)


def parse_command_line(argv: Sequence[str]) -> TrainConfig:
    """Return the configuration, without ``--config-file`` that of :data:`DEFAULT_RECIPE`.

    The run folder defaults to ``runs/NAME``, where NAME is the stem of the config file.
    """
    return parse_with_changes(argv)[0]


def parse_with_changes(argv: Sequence[str]) -> tuple[TrainConfig, dict[str, Any]]:
    """Return the configuration of :func:`parse_command_line`, and the options that differ from the recipe's."""
    with name_options_as_typed(argv):
        return _parse([*flags_from_environment(), *translate(argv)])  # the command line overrides variables


def _parse(argv: Sequence[str]) -> tuple[TrainConfig, dict[str, Any]]:
    if config_name(argv) is None:
        argv = ["--config-file", DEFAULT_RECIPE, *argv]
        if not {"--help", "-h", "--help-all"} & set(argv):
            note(f"the recipe is {DEFAULT_RECIPE}; --config-file selects another")
    argv = [*data_from_environment(argv), *argv]
    config = parse_config(
        TrainConfig,
        argv,
        description="Train an ImageNet classifier from .beton files.",
        examples=EXAMPLES,
        aliases=aliases.format_table(),
        resolve=resolve,
    )
    from rebar.training.resume import normalize_resume  # imports torch

    folder = config.logging.folder or str(Path("runs") / str(config_name(argv)))
    config = dataclasses.replace(
        config,
        logging=dataclasses.replace(config.logging, folder=folder),
        checkpoint=dataclasses.replace(
            config.checkpoint, resume=normalize_resume(config.checkpoint.resume, RunFolder(Path(folder)))
        ),
    )
    return config, changed_options(config, argv)


def flags_from_environment(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the flags, and print a note, for RESET_SCHED, FREEZE_LR and FREEZE_LR_VALUE."""
    flags: list[str] = []
    if parse_bool(environment.get("RESET_SCHED", "")):
        flags.append("--checkpoint.reset_schedule=true")
    if parse_bool(environment.get("FREEZE_LR", "")):
        flags.append(f"--checkpoint.freeze_lr={environment.get('FREEZE_LR_VALUE') or 0}")
    elif environment.get("FREEZE_LR_VALUE"):
        warn("FREEZE_LR_VALUE has no effect without FREEZE_LR=1")
    if flags:
        note(f"{' '.join(flags)}, from the environment variables RESET_SCHED and FREEZE_LR")
    return flags


def data_from_environment(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the flags, and print a note, for IMAGENET_ROOT, unless a dataset is given."""
    root = environment.get("IMAGENET_ROOT", "")
    options = ("data.train_dataset", "data.val_dataset")
    if not root or environment.get("WRITE_DIR") or any(given_value(option, argv) for option in options):
        return []
    note(f"the data comes from IMAGENET_ROOT, {root}")
    return [f"--{option}={root}" for option in options]


def resolve(config: TrainConfig, environment: Mapping[str, str] = os.environ) -> TrainConfig:
    """Return the configuration with the batch size per rank and the datasets, as far as they are known.

    Warns if the dataset is gated and no token is set. Raises ConfigError if the ranks cannot share a global batch.
    """
    training, data = config.training, config.data
    ranks = int(words) if (words := environment.get("WORLD_SIZE", "")).isdecimal() and int(words) > 0 else 1
    if training.global_batch_size % ranks:
        raise ConfigError(
            f"training.global_batch_size = {training.global_batch_size} is not a multiple of the {ranks} ranks. Use a "
            "multiple.",
            code="config-invalid-value",
        )
    if training.global_batch_size:
        training = dataclasses.replace(training, batch_size=training.global_batch_size // ranks)
    folder = environment.get("WRITE_DIR", "")
    train, val = (
        given or (IMAGENET_ON_HUB if data.use_hf else folder and str(Path(folder) / f"{split}.beton"))
        for given, split in ((data.train_dataset, "train"), (data.val_dataset, "val"))
    )
    if IMAGENET_ON_HUB in (train, val) and not has_token():
        name = IMAGENET_ON_HUB.partition(":")[2]
        warn(f"HF_TOKEN is not set, and {IMAGENET_ON_HUB} is gated. To get access:\n{steps_to_access(name)}")
    data = dataclasses.replace(data, train_dataset=train, val_dataset=val)
    return dataclasses.replace(config, training=training, data=data)


@contextmanager
def name_options_as_typed(argv: Sequence[str]) -> Iterator[None]:
    """In an error that is raised in the block, name options by the flags with which they are given in ``argv``."""
    try:
        yield
    except RebarError as error:
        text = str(error)
        for path, flag in typed_flags(argv).items():
            short = path.rpartition(".")[2].replace("_", "-")
            text = re.sub(rf"(?<![\w./-])((--)?{re.escape(path)}|--{short})(?![\w/-])(?!\.\w)", flag, text)
        # A flag that sets several options is reported once.
        text = re.sub(r"(?<=: )(.+?)(; \1)+(?=[;.])", r"\1", text)
        error.args = (text, *error.args[1:])
        raise


def typed_flags(argv: Sequence[str]) -> dict[str, str]:
    """Return the flag with which each option is given, by the option's full name."""
    options = list(options_of(TrainConfig))
    known = {f"--{item.path}": [item.path] for item in options}
    known |= {item.flag: [item.path] for item in short_names(options).values()}
    for alias in aliases.ALIASES:
        paths = re.findall(r"--([a-z_]+\.[a-z_0-9]+)=", alias.translation)
        known |= dict.fromkeys(alias.names, paths)
    typed: dict[str, str] = {}
    for word in argv:
        flag = word.partition("=")[0]
        typed |= dict.fromkeys(known.get(flag) or known.get(flag.replace("_", "-")) or [], flag)
    return typed
