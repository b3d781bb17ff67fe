"""Flags that people have in their fingers from other ResNet-50 scripts, and what they mean here.

One line a flag in :data:`ALIASES`; ``--help`` lists them. A knob whose last name is unique needs none.
"""

import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebar.cli import warn
from rebar.config import given_value, parse_bool
from rebar.errors import RebarError

RECIPES = "rn50_configs"
_BESIDE_THE_PACKAGE = Path(__file__).resolve().parents[2] / RECIPES


@dataclass(frozen=True)
class Alias:
    """A flag; with ``takes`` it is followed by a value, which replaces ``{}`` in ``means``.

    ``means`` is what is put in its place; empty for a flag without effect, of which ``note`` says why. Without
    ``takes`` the flag may be given true or false as our own are; ``off`` is what false means.
    """

    flag: str
    means: str = ""
    takes: str = ""
    note: str = ""
    off: str = ""
    secret: str = ""
    """The environment variable that the value becomes; it is put into no configuration and no log."""


_AMP = "--amp"
HALF, FULL = "--training.precision=auto", "--training.precision=32"
ALIASES = (
    Alias("--batch-size", "--training.batch_size={}", "N", "per process"),
    Alias("--scheduler", "--lr.lr_schedule_type={}", "NAME"),
    Alias(_AMP, HALF, note="a recipe's fp16 or bf16 stays", off=FULL),
    Alias("--no-amp", FULL, off=HALF),
    Alias(
        "--use-label-smoothing",
        "--training.label_smoothing=0.1",
        note="another amount: --label-smoothing",
        off="--training.label_smoothing=0",
    ),
    Alias("--lr-finder", "--training.find_lr=true", off="--training.find_lr=false"),
    Alias("--out-dir", "--logging.folder={}", "FOLDER", "with --experiment-name, the folder above it"),
    Alias("--experiment-name", f"--logging.folder={Path('runs') / '{}'}", "NAME"),
    Alias("--config", "--config-file={}", "FILE"),
    Alias("--config-name", f"--config-file={RECIPES}/{{}}.yaml", "NAME"),
    Alias("--use-channels-last", "--execution.channels_last=true", off="--execution.channels_last=false"),
    Alias("--hf-token", takes="TOKEN", note="which, set before the command, nobody else can read", secret="HF_TOKEN"),
    Alias("--multi-gpu", note="torchrun starts one process a GPU: torchrun --nproc_per_node=GPUS train_imagenet.py"),
)
SAME_HERE = (
    *("--epochs", "--lr", "--max-lr", "--augmentation", "--data-subset", "--stats-file", "--use-hf"),
    *("--use-mixup", "--use-cutmix", "--use-randaugment", "--use-ema", "--use-swa", "--use-blurpool"),
    *("--compile-model", "--channels-last", "--sync-bn", "--resume", "--dry-run", "--find-lr", "--show-progress"),
    *("--wandb", "--wandb-project", "--wandb-name", "--wandb-tags", "--hf-repo"),
)
"""Flags of our own that are called so elsewhere, too."""


def translate(argv: Sequence[str], aliases: Sequence[Alias] = ALIASES) -> list[str]:
    """The command line in our own flags.

    Warns of flags without effect; RebarError where a value is missing or wrong, or there are no recipes.
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
            value = _next_value(words, takes=alias.takes)
        if alias.takes and not value:
            raise RebarError(f"{flag} needs a value: {flag} {alias.takes}")
        if alias.secret:
            _take_secret(alias.secret, value)
        elif alias.flag in ("--out-dir", "--experiment-name"):
            given[alias.flag] = value
        elif alias.flag == "--config-name":
            translated.append(f"--config-file={_recipe(value)}")
        elif alias.takes:
            translated.append(alias.means.replace("{}", value))
        elif meaning := _switched(alias, flag, value):
            translated.append(_AMP if meaning == HALF else meaning)
    if given:
        folder = Path(given.get("--out-dir", "runs")) / given.get("--experiment-name", "")
        translated.append(f"--logging.folder={folder}")
    return _with_amp(translated) if _AMP in translated else translated


def _next_value(words: list[str], *, takes: str) -> str:
    """Take the value that stands by itself behind a flag; 'true' for a switch that has none."""
    if words and not words[0].startswith("--" if takes else "-"):
        return words.pop(0)
    return "" if takes else "true"


def _with_amp(words: Sequence[str]) -> list[str]:
    """Put into the place of --amp what it means, or nothing where the rest asks for half precision already."""
    others = [word for word in words if word != _AMP]
    if given_value("training.precision", others) in ("fp16", "bf16"):
        return others
    return [HALF if word == _AMP else word for word in words]


def _switched(alias: Alias, flag: str, value: str) -> str:
    """What a flag that is true or false means; empty, with a warning, for one without effect."""
    on = parse_bool(value)
    if on is None:
        note = f" ({alias.note})" if alias.note and alias.means else ""
        raise RebarError(f"{flag} stands alone or takes true or false, not '{value}'{note}")
    if not alias.means:
        warn(f"{flag} has no effect: {alias.note}")
    return alias.means if on else alias.off


def _recipe(name: str) -> Path:
    """The file of a recipe: beside the package, or where it was installed without them, in the working folder."""
    folders = [folder for folder in (_BESIDE_THE_PACKAGE, Path(RECIPES)) if folder.is_dir()]
    if not folders:
        raise RebarError(
            f"--config-name {name}: there is no folder {RECIPES} in {Path.cwd()}, nor beside the installed package: "
            "run it in a clone of the repository, or give --config FILE"
        )
    files = [folder / f"{name.removesuffix('.yaml')}.yaml" for folder in folders]
    return next((file for file in files if file.is_file()), files[0])


def _take_secret(variable: str, value: str) -> None:
    """Put a secret where libraries look for it, and take it out of what the process says its command line is."""
    os.environ[variable] = value
    if value:
        sys.argv = [word.replace(value, "***") for word in sys.argv]


def table(aliases: Sequence[Alias] = ALIASES) -> str:
    """The aliases as the lines that ``--help`` shows."""
    lines = []
    for alias in aliases:
        means = f"{alias.secret}={alias.takes}" if alias.secret else alias.means.replace("{}", alias.takes)
        note = f" ({alias.note})" if alias.note and means else alias.note and f"no effect: {alias.note}"
        lines.append(f"  {f'{alias.flag} {alias.takes}'.strip():<26}{means}{note}")
    same = textwrap.wrap(
        f"the same here: {' '.join(SAME_HERE)}",
        width=110,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
    return "\n".join([*lines, *same])
