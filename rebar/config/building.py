"""Values, by the names of their settings, to a frozen configuration, and back."""

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml

from rebar.cli import warn
from rebar.config.files import flatten
from rebar.config.knobs import ConfigError, knobs_of, short_names

Schema = TypeVar("Schema")


def build_config(schema: type[Schema], values: Mapping[str, Any], *, where: str = "configuration") -> Schema:
    """Make a schema instance of ``{"section.name": value}``, the rest at their defaults.

    Raises ConfigError naming the first unknown key (with the nearest known one), wrong value or
    missing required setting. Keys in the schema's ``ignored_keys`` give a warning.
    """
    knobs = {item.path: item for item in knobs_of(schema)}
    ignored: Mapping[str, str] = getattr(schema, "ignored_keys", {})
    sections: dict[str, dict[str, Any]] = {item.section: {} for item in knobs.values()}
    for path, value in values.items():
        if path in ignored:
            warn(f"{path} has no effect: {ignored[path]}")
            continue
        if path not in knobs:
            raise ConfigError(f"{where}: unknown setting '{path}'{_did_you_mean(path, list(knobs))}")
        item = knobs[path]
        try:
            sections[item.section][item.name] = item.check(value)
        except ValueError as error:
            raise ConfigError(f"{where}: {path} = {value!r}: {error}") from None
    for item in knobs.values():
        if item.required and item.name not in sections[item.section]:
            short = short_names(list(knobs.values()))
            flag = item.name.replace("_", "-") if item.name in short else item.path
            raise ConfigError(f"--{flag} is required ({item.help()}): {item.description}")
    hints = typing.get_type_hints(schema)
    return schema(**{name: hints[name](**chosen) for name, chosen in sections.items()})


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    last = word.rpartition(".")[2]
    in_other_sections = [path for path in known if path.rpartition(".")[2] == last]
    near = in_other_sections[:1] or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def flatten_config(config: Any) -> dict[str, Any]:
    """The inverse of :func:`build_config`: ``{"section.name": value}`` of every knob."""
    return flatten(dataclasses.asdict(config))


def to_yaml(config: Any) -> str:
    """The complete configuration as YAML, itself a valid ``--config-file``."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
