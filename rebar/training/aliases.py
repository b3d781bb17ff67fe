"""Flags that people have in their fingers from other ResNet-50 scripts, and what they mean here.

One line a flag in :data:`ALIASES`; ``--help`` lists them. A knob whose last name is unique needs none.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebar.cli import warn
from rebar.errors import RebarError

_RECIPES = Path(__file__).resolve().parents[2] / "rn50_configs"


@dataclass(frozen=True)
class Alias:
    """A flag; with ``takes`` it is followed by a value, which replaces ``{}`` in ``means``.

    ``means`` is what is put in its place; empty for a flag without effect, of which ``note`` says why.
    """

    flag: str
    means: str = ""
    takes: str = ""
    note: str = ""
    secret: str = ""
    """The environment variable that the value becomes; it is put into no configuration and no log."""


ALIASES = (
    Alias("--batch-size", "--training.batch_size={}", "N", "per process"),
    Alias("--scheduler", "--lr.lr_schedule_type={}", "NAME"),
    Alias("--amp", "--training.precision=auto"),
    Alias("--no-amp", "--training.precision=32"),
    Alias("--use-label-smoothing", "--training.label_smoothing=0.1"),
    Alias("--lr-finder", "--training.find_lr=true"),
    Alias("--out-dir", "--logging.folder={}", "FOLDER", "with --experiment-name, the folder above it"),
    Alias("--experiment-name", f"--logging.folder={Path('runs') / '{}'}", "NAME"),
    Alias("--config", "--config-file={}", "FILE"),
    Alias("--config-name", f"--config-file={_RECIPES}/{{}}.yaml", "NAME", "of rn50_configs"),
    Alias("--use-channels-last", "--execution.channels_last=true"),
    Alias("--hf-token", takes="TOKEN", note="which, set before the command, nobody else can read", secret="HF_TOKEN"),
    Alias("--multi-gpu", note="torchrun starts one process a GPU: torchrun --nproc_per_node=GPUS train_imagenet.py"),
)


def translate(argv: Sequence[str], aliases: Sequence[Alias] = ALIASES) -> list[str]:
    """The command line in our own flags. Warns of flags without effect; RebarError where a value is missing."""
    known = {alias.flag: alias for alias in aliases}
    words, given, translated = list(argv), dict[str, str](), list[str]()
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        alias = known.get(flag.replace("_", "-"))
        if alias is None:
            translated.append(word)
            continue
        if alias.takes and not equals:
            if not words or words[0].startswith("--"):
                raise RebarError(f"{flag} needs a value: {flag} {alias.takes}")
            value = words.pop(0)
        if alias.secret:
            _take_secret(alias.secret, value)
        elif alias.flag in ("--out-dir", "--experiment-name"):
            given[alias.flag] = value
        elif alias.means:
            translated.append(alias.means.replace("{}", value))
        else:
            warn(f"{flag} has no effect: {alias.note}")
    if given:
        folder = Path(given.get("--out-dir", "runs")) / given.get("--experiment-name", "")
        translated.append(f"--logging.folder={folder}")
    return translated


def _take_secret(variable: str, value: str) -> None:
    """Put a secret where libraries look for it, and take it out of what the process says its command line is."""
    os.environ[variable] = value
    if value:
        sys.argv = [word.replace(value, "***") for word in sys.argv]


def table(aliases: Sequence[Alias] = ALIASES) -> str:
    """The aliases as the lines that ``--help`` shows."""
    lines = []
    for alias in aliases:
        means = f"{alias.secret}={alias.takes}" if alias.secret else alias.means
        means = means.replace(f"{_RECIPES.parent}/", "").replace("{}", alias.takes)
        note = f" ({alias.note})" if alias.note and means else alias.note and f"no effect: {alias.note}"
        lines.append(f"  {f'{alias.flag} {alias.takes}'.strip():<26}{means}{note}")
    return "\n".join(lines)
