"""YAML files of settings, which may extend others.

Values, by the names of their settings, to a frozen configuration, and back.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rebar.cli import warn
from rebar.config.options import ConfigError, options_of, short_names


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), Loader=_StrictLoader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=3)
        hint = f"; near it there is {', '.join(near)}" if near else ""
        raise ConfigError(f"config file {path} does not exist{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path} must hold sections such as 'training:', not a {type(content).__name__}")
    return content


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"section.name": value}`` of nested sections. Raises ConfigError for a setting that is there twice."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found = flatten(value, f"{prefix}{key}.")
        else:  # an empty section holds nothing
            found = {f"{prefix}{key}": value} if value is not None or prefix else {}
        if twice := flat.keys() & found.keys():
            raise ConfigError(f"{min(twice)} is given twice, with a dot and within its section")
        flat |= found
    return flat


def load_config_files(paths: Sequence[Path | str]) -> dict[str, Any]:
    """Read YAML files, and what they extend, into ``{"section.name": value}``; later ones win.

    Raises ConfigError for a file that is missing, unreadable, no YAML, or that extends itself.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        merged.update(_load_one(_or_bundled(Path(path)), ()))
    return merged


def _or_bundled(path: Path) -> Path:
    """Return ``path``, or the bundled recipe of that name: ``rn50_configs`` is installed next to this package."""
    bundled = Path(__file__).resolve().parents[2] / path
    is_recipe = not path.is_absolute() and path.parent.name == path.parts[0] == "rn50_configs"
    return bundled if is_recipe and not path.exists() and bundled.exists() else path


def _load_one(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in chain:
        raise ConfigError(f"config file {path} extends itself, through {' -> '.join(p.name for p in chain)}")
    content = _read_yaml(path)
    bases = content.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"config file {path}: extends must name a file, or a list of files, not {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        merged.update(_load_one(path.parent / base, (*chain, path.resolve())))
    merged.update(flatten(content))
    return merged


Schema = TypeVar("Schema")


def build_config(schema: type[Schema], values: Mapping[str, Any], *, where: str = "configuration") -> Schema:
    """Make a schema instance of ``{"section.name": value}``, the rest at their defaults.

    Raises ConfigError naming the first unknown key (with the nearest known one), wrong value or
    missing required setting. Keys in the schema's ``ignored_keys`` give a warning.
    """
    knobs = {item.path: item for item in options_of(schema)}
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
