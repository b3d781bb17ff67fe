"""Configuration: frozen dataclasses <-> YAML files <-> the command line.

A knob is declared once, where its code is::

    @dataclass(frozen=True)
    class LearningRateConfig:
        '''Learning rate schedule.'''

        lr: float = knob(0.5, help="peak learning rate", minimum=0)

A *schema* is a dataclass whose fields are such sections. :func:`parse_config` makes fastargs Sections
and Params of it, reads ``--config-file`` YAML files (which may ``extends:`` others), then the command
line, and returns one frozen instance. Nothing else, the environment least of all, changes a value.
"""

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import fastargs
import yaml
from fastargs.validation import Checker

from rebar.cli import warn
from rebar.errors import RebarError

Schema = TypeVar("Schema")
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


class ConfigError(RebarError):
    """A setting that is unknown, of the wrong type, or out of range."""


def knob(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    required: bool = False,
    bare: str | None = None,
) -> Any:
    """Declare a setting: its default, one line of help, and the range it must lie in (inclusive).

    ``bare`` is the value that its flag means when it is written without one.
    """
    if required == (default is not dataclasses.MISSING):
        raise TypeError("a knob has either a default or required=True")
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "bare": bare}
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


def section(section_class: type[Schema]) -> Schema:
    """Declare a section of a schema, all of its knobs at their defaults."""
    return dataclasses.field(default_factory=section_class)


@dataclass(frozen=True)
class Knob(Checker):
    """One setting as the schema declares it; also the fastargs Checker of its values."""

    section: str
    name: str
    type: Any
    default: Any
    description: str
    minimum: float | None
    maximum: float | None
    bare: str | None = None

    @property
    def path(self) -> str:
        """The full name, ``section.name``."""
        return f"{self.section}.{self.name}"

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    def check(self, value: Any) -> Any:
        """Convert ``value`` (from YAML or the command line) to the knob's type.

        Raises ValueError, with what was expected, where that is not possible.
        """
        converted = _convert(value, self.type)
        if converted is not None and not self._in_range(converted):
            raise ValueError(f"expected {self.help()}")
        return converted

    def _in_range(self, value: Any) -> bool:
        # "not below" would let NaN through, for which no comparison is true
        return (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)

    def help(self) -> str:
        """What a value must be, in words."""
        words = _type_in_words(self.type)
        if self.minimum is not None and self.maximum is not None:
            return f"{words} from {self.minimum:g} to {self.maximum:g}"
        if self.minimum is not None:
            return f"{words}, at least {self.minimum:g}"
        return words


def _type_in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + "|".join(get_args(kind))
    if get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_type_in_words(member) for member in get_args(kind))
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return words[kind]


def _convert(value: Any, kind: Any) -> Any:
    if get_origin(kind) in (typing.Union, types.UnionType):
        if value is None or str(value).lower() in ("none", "null"):
            return None
        (kind,) = (member for member in get_args(kind) if member is not type(None))
    expected = f"expected {_type_in_words(kind)}"
    text = str(value).strip()
    if value is None or isinstance(value, (list, dict)):
        raise ValueError(expected)
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
    elif get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
    elif isinstance(value, bool):
        pass  # true is neither a number nor a text
    elif kind is str:
        return str(value)
    else:
        try:
            number = kind(text)
        except ValueError:
            raise ValueError(expected) from None
        if math.isfinite(number):
            return number
    raise ValueError(expected)


def knobs_of(schema: type) -> Iterator[Knob]:
    """All knobs of a schema, section by section."""
    for section_name, section_class in typing.get_type_hints(schema).items():
        if not dataclasses.is_dataclass(section_class):
            continue  # a ClassVar such as ignored_keys
        hints = typing.get_type_hints(section_class)
        for field in dataclasses.fields(section_class):
            meta = field.metadata
            yield Knob(
                section=section_name,
                name=field.name,
                type=hints[field.name],
                default=field.default,
                description=meta["help"],
                minimum=meta["minimum"],
                maximum=meta["maximum"],
                bare="true" if hints[field.name] is bool else meta["bare"],
            )


def _short_names(knobs: Sequence[Knob]) -> dict[str, Knob]:
    """Last names that only one section has: these may be written without the section."""
    by_name: dict[str, list[Knob]] = {}
    for item in knobs:
        by_name.setdefault(item.name, []).append(item)
    return {name: items[0] for name, items in by_name.items() if len(items) == 1}


# ---------------------------------------------------------------- YAML files


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


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found = _flatten(value, f"{prefix}{key}.")
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
        merged.update(_load_one(Path(path), ()))
    return merged


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
    merged.update(_flatten(content))
    return merged


# ---------------------------------------------------------------- values -> a frozen config


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
            short = _short_names(list(knobs.values()))
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
    return _flatten(dataclasses.asdict(config))


def to_yaml(config: Any) -> str:
    """The complete configuration as YAML, itself a valid ``--config-file``."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


# ---------------------------------------------------------------- the command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message} (see --help)")


def _declare(schema: type, knobs: Sequence[Knob]) -> fastargs.Config:
    """The schema as fastargs Sections and Params."""
    declared = fastargs.Config()
    hints = typing.get_type_hints(schema)
    for item in knobs:
        if declared.sections[(item.section,)] is None:
            title = (hints[item.section].__doc__ or item.section).strip().splitlines()[0].rstrip(".")
            fastargs.Section(item.section, title, config_descriptor=declared)
        default = None if item.required else item.default
        param = fastargs.Param(item, item.description, default=default, required=item.required)
        declared.sections[(item.section,)].params(**{item.name: param})
    return declared


def _make_parser(schema: type, knobs: Sequence[Knob], description: str, example: str) -> argparse.ArgumentParser:
    # fastargs' own argparse glue reads the environment, which must never win, and sys.argv; so only its
    # declarations are used.
    parser = _Parser(
        description=f"{description}\n\n  {example}" if example else description,
        epilog="The command line wins over --config-file, which wins over the defaults.",
        usage="%(prog)s [--config-file YAML] [--section.name=value] [--name value]",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34),
    )
    parser.add_argument(
        "--config-file",
        "-C",
        action="append",
        default=[],
        metavar="YAML",
        help="settings; may be repeated, later wins",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    declared, short_names = _declare(schema, knobs), _short_names(knobs)
    for section_path, entries in declared.sections_to_entries.items():
        group = parser.add_argument_group(declared.sections[section_path].desc)
        for entry in entries:
            param = declared.entries[entry]
            item: Knob = param.checker
            full = [f"--{item.path}", f"--{item.path.replace('_', '-')}"]
            short = [f"--{item.name.replace('_', '-')}", f"--{item.name}"] if item.name in short_names else []
            bare: dict[str, Any] = {} if item.bare is None else {"nargs": "?", "const": item.bare}
            shown, *hidden = dict.fromkeys(short + full)
            text = str(param).replace("%", "%%")
            group.add_argument(shown, dest=item.path, default=argparse.SUPPRESS, help=text, metavar="X", **bare)
            for name in hidden:  # other spellings work, but would crowd the help
                parser.add_argument(name, dest=item.path, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **bare)
    return parser


def _refuse_unknown(unknown: Sequence[str], parser: argparse.ArgumentParser, knobs: Sequence[Knob]) -> None:
    flag = next((word for word in unknown if word.startswith("-")), unknown[0])
    name = flag.partition("=")[0]
    same = [item.path for item in knobs if item.name == name.lstrip("-").replace("-", "_")]
    if len(same) > 1:
        raise ConfigError(f"{name} is ambiguous: write --{' or --'.join(same)}")
    near = difflib.get_close_matches(name, list(parser._option_string_actions), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"unknown argument {name}{hint} (--help lists all)")


def parse_config(
    schema: type[Schema], argv: Sequence[str], *, description: str, example: str = "", aliases: str = ""
) -> Schema:
    """Resolve command line over YAML files over defaults into one frozen ``schema`` instance.

    ``aliases`` is what ``--help`` shows under a heading of its own.
    ``--help`` and ``--print-config`` print and exit. Raises ConfigError for anything wrong.
    """
    knobs = list(knobs_of(schema))
    parser = _make_parser(schema, knobs, description, example)
    if aliases:
        parser.add_argument_group("Flags of other scripts, understood as", aliases)
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        _refuse_unknown(unknown, parser, knobs)
    given = {path: value for path, value in vars(namespace).items() if "." in path}
    from_files = load_config_files(namespace.config_file)
    files = ", ".join(str(name) for name in namespace.config_file)
    if from_files:  # checked alone first, so that the message blames the right place
        required = {item.path: given[item.path] for item in knobs if item.required and item.path in given}
        build_config(schema, {**from_files, **required}, where=files)
    values = {path: value for path, value in from_files.items() if path not in getattr(schema, "ignored_keys", {})}
    config = build_config(schema, {**values, **given}, where="command line")
    if namespace.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def config_name(argv: Sequence[str]) -> str | None:
    """The stem of the last ``--config-file`` on a command line, or None."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-file", "-C", action="append", default=[])
    files = parser.parse_known_args(list(argv))[0].config_file
    return Path(files[-1]).stem if files else None
