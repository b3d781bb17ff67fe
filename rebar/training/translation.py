"""Translate the flags and YAML keys of other ResNet-50 training scripts, as listed in :mod:`rebar.training.aliases`."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rebar.cli import note, warn
from rebar.config import ConfigError, given_value, parse_bool
from rebar.training.aliases import (
    ALIASES,
    AMP,
    AUTO_PRECISION,
    NOT_IN_YAML,
    RECIPE_NAMES,
    RECIPES,
    Alias,
)

REPOSITORY_RECIPES = Path(__file__).resolve().parents[2] / RECIPES


def translate(argv: Sequence[str], aliases: Sequence[Alias] = ALIASES) -> list[str]:
    """Translate a command line to Rebar's flags.

    Warns about flags without effect. Raises RebarError if a value is missing or invalid, or no recipes are found.
    """
    known = {name: alias for alias in aliases for name in alias.names}
    words, given, translated = list(argv), dict[str, str](), list[str]()
    switches = list[str]()  # before the other words, so that a value that is given takes precedence
    while words:
        word = words.pop(0)
        if attached := re.fullmatch(r"(-[bj])=?(\d+)", word):
            word = "=".join(attached.groups())
        flag, equals, value = word.partition("=")
        alias = known.get(flag.replace("_", "-"))
        if alias is None:
            translated.append(word)
            continue
        if not equals:
            value = _next_value(words, metavar=alias.metavar)
        while alias.many and words and not words[0].startswith("-"):
            value += f",{words.pop(0)}"
        if alias.metavar and not value:
            raise ConfigError(
                f"{flag}: the value is missing. Pass {flag} {alias.metavar}.", code="config-invalid-value"
            )
        if alias.secret:
            _set_secret(alias.secret, value)
        elif alias.names[0] in ("--out-dir", "--experiment-name", "--config-name"):
            given[alias.names[0]] = value
        elif not alias.translation and alias.metavar:
            warn(f"{flag} has no effect: {alias.note}")
        elif alias.metavar:
            parts = [part.replace("{}", value) for part in alias.translation.split()]
            (switches if alias.weak else translated).extend(parts)
        elif translation := _translate_boolean(alias, flag, value):
            switches.append(AMP if translation == AUTO_PRECISION else translation)
    translated = switches + translated
    if "--config-name" in given:
        translated = _with_recipe(given.pop("--config-name"), translated)
    if given:
        folder = Path(given.get("--out-dir", "runs")) / given.get("--experiment-name", "")
        translated.append(f"--logging.folder={folder}")
    return _resolve_amp(translated) if AMP in translated else translated


def translate_key(name: str, value: Any) -> dict[str, Any] | None:
    """Translate a key of a YAML file, such as ``grad_clip_norm``, to ``{"section.name": value}``.

    The result is None if the name is unknown. Warns about keys without effect.
    """
    flag = f"--{name.replace('_', '-')}"
    if value is None or flag in NOT_IN_YAML or not any(flag in alias.names for alias in ALIASES):
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    words = (word.removeprefix("--").partition("=") for word in translate([f"{flag}={text}"]))
    return {path: translated for path, _, translated in words}


def _next_value(words: list[str], *, metavar: str) -> str:
    """Remove and return the value that follows a flag; 'true' for a boolean flag without a value."""
    if words and (not words[0].startswith("-") or (metavar and re.match(r"-\.?\d", words[0]))):
        return words.pop(0)
    return "" if metavar else "true"


def _resolve_amp(words: Sequence[str]) -> list[str]:
    """Replace --amp with its translation, or remove it if another option already selects fp16 or bf16."""
    others = [word for word in words if word != AMP]
    if given_value("training.precision", others) in ("fp16", "bf16"):
        return others
    return [AUTO_PRECISION if word == AMP else word for word in words]


def _translate_boolean(alias: Alias, flag: str, value: str) -> str:
    """Translate a boolean flag. Warn and return "" if the flag has no effect."""
    on = parse_bool(value)
    if on is None:
        remark = f" ({alias.note})" if alias.note and alias.translation else ""
        message = f"{flag}: '{value}' is neither true nor false. Use true, false or no value{remark}."
        raise ConfigError(message, code="config-invalid-value")
    if not alias.translation:
        warn(f"{flag} has no effect: {alias.note}")
    return alias.translation if on else alias.off


def _with_recipe(name: str, words: Sequence[str]) -> list[str]:
    """Add the recipe that --config-name gives: the configuration NAME of the config file, if one is given as well."""
    flags = ("--config-file", "--config_file", "-C")
    values = [index + 1 for index, word in enumerate(words) if word in flags]
    values += [index for index, word in enumerate(words) if word.startswith(tuple(f"{flag}=" for flag in flags))]
    if not values:
        return [f"--config-file={_recipe(name)}", *words]
    return [f"{word}#{name}" if index == max(values) else word for index, word in enumerate(words)]


def _recipe(name: str) -> Path:
    """Return the path of a recipe in the repository, or in the working folder if there is none."""
    folders = [folder for folder in (REPOSITORY_RECIPES, Path(RECIPES)) if folder.is_dir()]
    if not folders:
        raise ConfigError(
            f"--config-name {name}: no folder {RECIPES} in {Path.cwd()} or next to the package. Run the command in a "
            "clone of the repository, or pass --config FILE.",
            code="config-file-not-found",
        )
    files = [folder / f"{name.removesuffix('.yaml')}.yaml" for folder in folders]
    if (found := next((file for file in files if file.is_file()), None)) is not None:
        return found
    nearest = RECIPE_NAMES.get(name.removesuffix("_config").removeprefix("aws_g4dn_").removeprefix("aws_"))
    if nearest is None:
        return files[0]  # reported as missing, with similar names
    note(f"--config-name {name}: using {RECIPES}/{nearest}.yaml")
    return _recipe(nearest)


def _set_secret(variable: str, value: str) -> None:
    """Set an environment variable to a secret, and mask the secret in ``sys.argv``."""
    os.environ[variable] = value
    if value:
        sys.argv = [word.replace(value, "***") for word in sys.argv]
