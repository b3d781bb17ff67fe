"""Translate the flags and environment variables of other ResNet-50 training scripts to Rebar's flags.

:data:`ALIASES` has one entry per flag, and ``--help`` lists them.
"""

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rebar.cli import note, warn
from rebar.config import ConfigError, given_value, parse_bool

RECIPES = "rn50_configs"
REPOSITORY_RECIPES = Path(__file__).resolve().parents[2] / RECIPES


@dataclass(frozen=True)
class Alias:
    """A flag and its translation.

    - translation: Rebar's flag, in which ``{}`` is replaced by the value; empty if the flag has no effect.
    - metavar: the value's name in the help; empty for a boolean flag, which takes an optional true or false.
    - note: an explanation for the help; for a flag without effect, the reason.
    - off: the translation if a boolean flag is false.
    - secret: the environment variable to set to the value. An option would be logged.
    """

    flag: str
    translation: str = ""
    metavar: str = ""
    note: str = ""
    off: str = ""
    secret: str = ""


_AMP = "--amp"
AUTO_PRECISION, FULL_PRECISION = "--training.precision=auto", "--training.precision=32"
ALIASES = (
    Alias("--batch-size", "--training.batch_size={}", "N", "per rank"),
    Alias("--scheduler", "--lr.lr_schedule_type={}", "NAME"),
    Alias(_AMP, AUTO_PRECISION, note="no effect on a recipe with fp16 or bf16", off=FULL_PRECISION),
    Alias("--no-amp", FULL_PRECISION, off=AUTO_PRECISION),
    Alias(
        "--use-label-smoothing",
        "--training.label_smoothing=0.1",
        note="other values: --label-smoothing",
        off="--training.label_smoothing=0",
    ),
    Alias("--lr-finder", "--training.find_lr=true", off="--training.find_lr=false"),
    Alias("--out-dir", "--logging.folder={}", "FOLDER", "with --experiment-name: its parent folder"),
    Alias("--experiment-name", f"--logging.folder={Path('runs') / '{}'}", "NAME"),
    Alias("--config", "--config-file={}", "FILE"),
    Alias("--config-name", f"--config-file={RECIPES}/{{}}.yaml", "NAME"),
    Alias("--use-channels-last", "--execution.channels_last=true", off="--execution.channels_last=false"),
    Alias(
        "--hf-token", metavar="TOKEN", note="other users can see command lines; prefer the variable", secret="HF_TOKEN"
    ),
    Alias("--multi-gpu", note="torchrun starts one process per GPU: torchrun --nproc_per_node=GPUS train_imagenet.py"),
)
SAME_NAME = (
    *("--epochs", "--lr", "--max-lr", "--augmentation", "--data-subset", "--stats-file", "--use-hf"),
    *("--use-mixup", "--use-cutmix", "--use-randaugment", "--use-ema", "--use-swa", "--use-blurpool"),
    *("--compile-model", "--channels-last", "--sync-bn", "--resume", "--dry-run", "--find-lr", "--show-progress"),
    *("--wandb", "--wandb-project", "--wandb-name", "--wandb-tags", "--hf-repo"),
)
"""Flags that other scripts have under the same name."""


def translate(argv: Sequence[str], aliases: Sequence[Alias] = ALIASES) -> list[str]:
    """Translate a command line to Rebar's flags.

    Warns about flags without effect. Raises RebarError if a value is missing or invalid, or no recipes are found.
    """
    known = {alias.flag: alias for alias in aliases}
    words, given, translated = list(argv), dict[str, str](), list[str]()
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        alias = known.get(flag.replace("_", "-"))
        if alias is None:
            translated.append(word)
            continue
        if not equals:
            value = _next_value(words, metavar=alias.metavar)
        if alias.metavar and not value:
            raise ConfigError(
                f"{flag}: the value is missing. Give {flag} {alias.metavar}.", code="config-invalid-value"
            )
        if alias.secret:
            _set_secret(alias.secret, value)
        elif alias.flag in ("--out-dir", "--experiment-name"):
            given[alias.flag] = value
        elif alias.flag == "--config-name":
            translated.append(f"--config-file={_recipe(value)}")
        elif alias.metavar:
            translated.append(alias.translation.replace("{}", value))
        elif translation := _translate_boolean(alias, flag, value):
            translated.append(_AMP if translation == AUTO_PRECISION else translation)
    if given:
        folder = Path(given.get("--out-dir", "runs")) / given.get("--experiment-name", "")
        translated.append(f"--logging.folder={folder}")
    return _resolve_amp(translated) if _AMP in translated else translated


def flags_from_environment(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return and announce the flags for RESET_SCHED, FREEZE_LR and FREEZE_LR_VALUE."""
    flags = []
    if parse_bool(environment.get("RESET_SCHED", "")):
        flags.append("--checkpoint.reset_schedule=true")
    if parse_bool(environment.get("FREEZE_LR", "")):
        flags.append(f"--checkpoint.freeze_lr={environment.get('FREEZE_LR_VALUE') or 0}")
    elif environment.get("FREEZE_LR_VALUE"):
        warn("FREEZE_LR_VALUE has no effect without FREEZE_LR=1")
    if flags:
        note(f"{' '.join(flags)}, from the environment variables RESET_SCHED and FREEZE_LR")
    return flags


def _next_value(words: list[str], *, metavar: str) -> str:
    """Remove and return the value that follows a flag; 'true' for a boolean flag without a value."""
    if words and not words[0].startswith("--" if metavar else "-"):
        return words.pop(0)
    return "" if metavar else "true"


def _resolve_amp(words: Sequence[str]) -> list[str]:
    """Replace --amp with its translation, or remove it if another option already selects fp16 or bf16."""
    others = [word for word in words if word != _AMP]
    if given_value("training.precision", others) in ("fp16", "bf16"):
        return others
    return [AUTO_PRECISION if word == _AMP else word for word in words]


def _translate_boolean(alias: Alias, flag: str, value: str) -> str:
    """Translate a boolean flag. Warn and return "" if the flag has no effect."""
    on = parse_bool(value)
    if on is None:
        note = f" ({alias.note})" if alias.note and alias.translation else ""
        message = f"{flag}: '{value}' is neither true nor false. Give true, false or no value{note}."
        raise ConfigError(message, code="config-invalid-value")
    if not alias.translation:
        warn(f"{flag} has no effect: {alias.note}")
    return alias.translation if on else alias.off


def _recipe(name: str) -> Path:
    """Return the path of a recipe in the repository, or in the working folder if there is none."""
    folders = [folder for folder in (REPOSITORY_RECIPES, Path(RECIPES)) if folder.is_dir()]
    if not folders:
        raise ConfigError(
            f"--config-name {name}: no folder {RECIPES} in {Path.cwd()} or next to the package. Run the command in a "
            "clone of the repository, or give --config FILE.",
            code="config-file-not-found",
        )
    files = [folder / f"{name.removesuffix('.yaml')}.yaml" for folder in folders]
    return next((file for file in files if file.is_file()), files[0])


def _set_secret(variable: str, value: str) -> None:
    """Set an environment variable to a secret, and mask the secret in ``sys.argv``."""
    os.environ[variable] = value
    if value:
        sys.argv = [word.replace(value, "***") for word in sys.argv]


def format_table(aliases: Sequence[Alias] = ALIASES) -> str:
    """Return the aliases as the table that ``--help`` prints."""
    lines = []
    for alias in aliases:
        shown = f"{alias.secret}={alias.metavar}" if alias.secret else alias.translation.replace("{}", alias.metavar)
        note = f" ({alias.note})" if alias.note and shown else alias.note and f"no effect: {alias.note}"
        lines.append(f"  {f'{alias.flag} {alias.metavar}'.strip():<26}{shown}{note}")
    same = textwrap.wrap(
        f"same name: {' '.join(SAME_NAME)}",
        width=110,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
    return "\n".join([*lines, *same])
