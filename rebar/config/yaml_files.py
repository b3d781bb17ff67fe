"""YAML files of options, which may extend other files, and their conversion to and from a schema."""

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rebar.cli import warn
from rebar.config.options import ConfigError, closest, options_of, short_names, with_implied

Schema = TypeVar("Schema")

_BUNDLED = Path(__file__).resolve().parents[2] / "rn50_configs"
"""The recipes that are installed next to this package."""

COMMAND_LINE = "command line"
"""The origin of options that are named as flags in messages."""


class _StrictLoader(yaml.SafeLoader):
    """A loader that rejects duplicate keys. PyYAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key}'", node.start_mark)
        return super().construct_mapping(node, deep)


def _invalid(path: Path | str, message: str) -> ConfigError:
    return ConfigError(f"config file {path}: {message}", code="config-file-invalid")


def _read_yaml(path: Path, extended_by: Path | None = None) -> dict[str, Any]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        # Without the extension, which makes short names similar.
        similar = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")], n=3)
        names = [f"{stem}.yaml" for stem in similar]
        if not names and (_BUNDLED / path.name).is_file():
            names = [f"{_BUNDLED.name}/{path.name}"]
        fix = f"Did you mean {' or '.join(names)}?" if names else "Check the path."
        chain = f", which {extended_by} extends" if extended_by else ""
        raise ConfigError(f"config file {path}{chain}: file not found. {fix}", code="config-file-not-found") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, f"not readable: {error}.") from None
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        location, problem = _describe_yaml_error(error, text)
        raise _invalid(f"{path}{location}", f"invalid YAML: {problem}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise _invalid(path, f"the top level is a {kind}. Write sections such as 'training:' with options in them.")
    return content


def _describe_yaml_error(error: yaml.YAMLError, text: str) -> tuple[str, str]:
    """Return the location, as ``:LINE:COLUMN`` counted from 1, and the problem, in one line."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n"), error.position - (before.rfind("\n") + 1)
        return f":{line + 1}:{column + 1}", f"character {error.character:#x} is not allowed"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "", " ".join(str(error).split())
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    return f":{error.problem_mark.line + 1}:{error.problem_mark.column + 1}", " ".join(problem.split())


def _flatten(content: Mapping[str, Any], origin: Path | str, prefix: str = "") -> dict[str, Any]:
    """Return ``{"section.name": value}`` for nested sections. Raises ConfigError for duplicate options."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found = _flatten(value, origin, f"{prefix}{key}.")
        else:  # a section may be empty
            found = {f"{prefix}{key}": value} if value is not None or prefix else {}
        if duplicates := flat.keys() & found.keys():
            raise _invalid(
                origin, f"{min(duplicates)} is set twice: as section.option and inside the section. Remove one."
            )
        flat |= found
    return flat


def load_config_files(paths: Sequence[Path | str], schema: type | None = None) -> dict[str, Any]:
    """Read YAML files and the files they extend into ``{"section.name": value}``; later files override earlier ones.

    ``FILE#NAME`` is the configuration NAME in a file of several. With a schema, keys at the top level may be options
    that only one section has, or names that its ``translate_key`` knows, and the values of each file include those that
    they imply.

    Raises ConfigError for a file that is missing, unreadable, not valid YAML, or extends itself.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        file, _, name = str(path).partition("#") if not Path(path).exists() else (str(path), "", "")
        merged.update(_load_one(_or_bundled(Path(file)), (), schema, name))
    return merged


def _or_bundled(path: Path) -> Path:
    """Return ``path``, or the bundled recipe of that name."""
    bundled = _BUNDLED / path.name
    is_recipe = path.parent == Path(_BUNDLED.name)
    return bundled if is_recipe and not path.exists() and bundled.exists() else path


def _load_one(
    path: Path, chain: tuple[Path, ...], schema: type | None, name: str = "", extended_by: Path | None = None
) -> dict[str, Any]:
    if path.resolve() in chain:
        raise _invalid(path, f"extends itself, through {' -> '.join(p.name for p in chain)}.")
    content = _read_yaml(path, extended_by)
    if name:
        content = _part(content, name, path)
    bases = content.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise _invalid(path, f"extends is {bases!r}. Set it to a file or a list of files.")
    merged: dict[str, Any] = {}
    for base in bases:
        merged.update(_load_one(path.parent / base, (*chain, path.resolve()), schema, extended_by=path))
    values = _flatten(content, path)
    if schema:
        merged.update(with_implied(schema, _with_full_names(schema, values, path)))
    else:
        merged.update({key.replace("-", "_"): value for key, value in values.items()})
    return merged


def _part(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Return the configuration ``name`` of a file that contains several."""
    parts = [key for key, value in content.items() if isinstance(value, Mapping)]
    if name not in parts:
        raise _invalid(path, f"has no configuration '{name}'. It has {', '.join(parts) or 'none'}.")
    return dict(content[name])


def _with_full_names(schema: type, values: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    """Replace names of options without section, and names of other scripts, with full names."""
    options = list(options_of(schema))
    known = {item.path for item in options} | set(getattr(schema, "ignored_keys", {}))
    short, translate = short_names(options), getattr(schema, "translate_key", None)
    result: dict[str, Any] = {}
    for key, value in values.items():
        spelled = key.replace("-", "_")  # as flags may be
        if spelled in known:
            found = {spelled: value}
        elif spelled in short:
            found = {short[spelled].path: value}
        else:
            translated = translate(key.rpartition(".")[2], value) if translate else None
            found = {key: value} if translated is None else translated
        if duplicates := result.keys() & found.keys():
            raise _invalid(origin, f"{min(duplicates)} is set twice, under two names. Remove one.")
        result |= found
    return result


def build_config(schema: type[Schema], values: Mapping[str, Any], *, origin: str = "configuration") -> Schema:
    """Return a schema instance with the given ``{"section.name": value}`` and defaults for all other options.

    Raises ConfigError with all unknown options, all invalid values, or the first missing option. Prints a warning for
    keys in the schema's ``ignored_keys``.
    """
    options = {item.path: item for item in options_of(schema)}
    ignored: Mapping[str, str] = getattr(schema, "ignored_keys", {})
    sections: dict[str, dict[str, Any]] = {item.section: {} for item in options.values()}
    short, is_command_line = short_names(list(options.values())), origin == COMMAND_LINE
    unknown: list[str] = []
    invalid: list[str] = []
    for path, value in values.items():
        if path in ignored:
            warn(f"{path} has no effect: {ignored[path]}")
        elif path not in options:
            unknown.append(f"{path}{_did_you_mean(path, list(options))}")
        else:
            item = options[path]
            try:
                sections[item.section][item.name] = item.check(value)
            except ValueError as error:
                name = item.shortest_flag(short) if is_command_line else path
                invalid.append(f"{name} = {value!r}, {error}")
    if unknown:
        what = "unknown options" if len(unknown) > 1 else "unknown option"
        raise ConfigError(f"{origin}: {what} {', '.join(unknown)}.", code="config-unknown-option")
    if invalid:
        raise ConfigError(f"{origin}: {'; '.join(invalid)}.", code="config-invalid-value")
    for item in options.values():
        if item.required and item.name not in sections[item.section]:
            raise ConfigError(
                f"{item.shortest_flag(short)}: required. Pass {item.help()}: {item.description}.",
                code="config-missing-option",
            )
    hints = typing.get_type_hints(schema)
    return schema(**{name: hints[name](**chosen) for name, chosen in sections.items()})


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    word = word.replace("-", "_")
    name = word.rpartition(".")[2]
    in_other_sections = [path for path in known if path.rpartition(".")[2] == name]
    similar = in_other_sections[0] if in_other_sections else closest(word, known)
    return f" (did you mean {similar}?)" if similar else ""


def flatten_config(config: Any) -> dict[str, Any]:
    """Return ``{"section.name": value}`` for every option: the inverse of :func:`build_config`."""
    return _flatten(dataclasses.asdict(config), "")


def to_yaml(config: Any) -> str:
    """Return the complete configuration as YAML, itself a valid ``--config-file``."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
