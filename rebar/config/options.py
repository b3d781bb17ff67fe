"""Declaration of options: type, default, range and help text."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from fastargs.validation import Checker

from rebar.errors import RebarError

Section = TypeVar("Section")
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_SIMILAR = 0.75  # lowest ratio of names that are suggested


class ConfigError(RebarError):
    """An option is unknown or missing, or its value is invalid."""


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    required: bool = False,
    const: str | None = None,
    unit: str = "",
    synonyms: Mapping[str, str] | None = None,
    choices: Iterable[str] = (),
    short: bool = True,
    metavar: str = "",
) -> Any:
    """Declare an option as a dataclass field.

    - minimum, maximum: the range of valid values, both included.
    - const: the value of the flag without an argument.
    - unit: a suffix of numbers that is accepted, as in Composer: ep (epochs), ba (steps) or dur (fraction of the run).
    - synonyms: other names of values, in lower case.
    - choices: the valid values of a text, such as the names in a registry.
    - short: whether the flag may omit the section.
    - metavar: the name of the value in the help, such as PATH; by default N for an integer, X for a number, else NAME.
    """
    if required == (default is not dataclasses.MISSING):
        raise TypeError("an option has either a default or required=True")
    metadata: dict[str, Any] = {"help": help, "minimum": minimum, "maximum": maximum, "const": const}
    metadata |= {"unit": unit, "synonyms": synonyms or {}, "short": short, "metavar": metavar}
    metadata["choices"] = tuple(choices)
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


def section(section_class: type[Section]) -> Section:
    """Declare a section of a schema, with all options at their defaults."""
    return dataclasses.field(default_factory=section_class)


@dataclass(frozen=True)
class Option(Checker):
    """One option of a schema. It is also the fastargs Checker of its values."""

    section: str
    name: str
    type: Any
    default: Any
    description: str
    minimum: float | None
    maximum: float | None
    const: str | None = None
    unit: str = ""
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    short: bool = True
    value_name: str = ""

    @property
    def path(self) -> str:
        """The full name, ``section.name``."""
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        """The flag without its section, ``--name``."""
        return f"--{self.name.replace('_', '-')}"

    def shortest_flag(self, short_names: Container[str]) -> str:
        """Return the flag, with its section unless the name is one of ``short_names``."""
        return self.flag if self.name in short_names else f"--{self.path}"

    @property
    def metavar(self) -> str:
        """The name of the value in the help; empty for a flag without value."""
        if self.value_name or self.type is bool:
            return self.value_name
        members = get_args(self.type) or (self.type,)
        return "N" if int in members else "X" if float in members else "NAME"

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is dataclasses.MISSING

    def check(self, value: Any) -> Any:
        """Convert a value from YAML or the command line to the option's type.

        Raises ValueError if the value has another type or is out of range.
        """
        if self.type is str and self.const is not None and isinstance(value, bool):
            value = str(value).lower()  # YAML's true, for an option that is also a flag without a value
        if self.unit and isinstance(value, str):
            value = value.strip().removesuffix(self.unit)
        converted = _convert(self.synonyms.get(str(value).lower(), value), self.type)
        if converted is not None and not self._in_range(converted):
            raise ValueError(f"expected {self.help()}")
        return converted

    def _in_range(self, value: Any) -> bool:
        # written so that NaN, which compares false with everything, is out of range
        return (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)

    def help(self) -> str:
        """Return a description of the valid values."""
        words = _describe_type(self.type)
        if self.minimum is not None and self.maximum is not None:
            return f"{words} from {_number(self.minimum)} to {_number(self.maximum)}"
        if self.minimum is not None:
            return f"{words}, at least {_number(self.minimum)}"
        return words

    def describe(self) -> str:
        """Return the help text of the flag: what it does, then its valid values unless they are obvious."""
        has_obvious_range = self.minimum in (0, 1) and self.maximum is None
        is_obvious = self.type in (str, bool) or has_obvious_range
        return self.description if is_obvious else f"{self.description} ({self.help()})"


def default_text(value: Any) -> str:
    """Return a default as the help shows it; empty if there is none, or if a flag is off."""
    if value is dataclasses.MISSING or value in ("", None) or value is False:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _describe_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + "|".join(get_args(kind))
    if get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_describe_type(member) for member in get_args(kind))
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return words[kind]


def parse_bool(text: str) -> bool | None:
    """Return the boolean value of a word such as ``yes`` or ``0``, or None for any other text."""
    word = text.strip().lower()
    return word in _TRUE if word in _TRUE | _FALSE else None


def _convert(value: Any, kind: Any) -> Any:
    if get_origin(kind) in (typing.Union, types.UnionType):
        if value is None or str(value).lower() in ("none", "null"):
            return None
        (kind,) = (member for member in get_args(kind) if member is not type(None))
    expected = f"expected {_describe_type(kind)}"
    text = str(value).strip()
    if value is None or isinstance(value, (list, dict)):
        raise ValueError(expected)
    if kind is bool:
        if (boolean := parse_bool(text)) is not None:
            return boolean
    elif get_origin(kind) is Literal:
        word = text if (boolean := parse_bool(text)) is None else str(boolean).lower()
        for candidate in (text, word):  # YAML's true and the command line's 1 are also "true"
            if candidate in get_args(kind):
                return candidate
    elif isinstance(value, bool):
        pass  # YAML's true is neither a number nor text
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


@dataclass(frozen=True)
class Implied:
    """A rule of a schema: setting ``option`` also sets ``target`` to ``value(option's value)``.

    It applies to the options of one YAML file, or of the command line, unless they include ``target``.
    Rules apply in order, so a later one may build on an earlier one. A schema lists its rules in ``implied``.
    """

    option: str
    target: str
    value: Callable[[Any], Any]


def with_implied(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``{"section.name": value}`` of one YAML file or the command line, with the values they imply."""
    result, rules = dict(values), getattr(schema, "implied", ())
    options = {item.path: item for item in options_of(schema)} if rules else {}
    for rule in rules:
        if rule.option in result and rule.target not in result:
            with suppress(ValueError):  # build_config reports an invalid value
                result[rule.target] = rule.value(options[rule.option].check(result[rule.option]))
    return result


def options_of(schema: type) -> Iterator[Option]:
    """Yield all options of a schema, section by section."""
    for section_name, section_class in typing.get_type_hints(schema).items():
        if not dataclasses.is_dataclass(section_class):
            continue  # a ClassVar such as ignored_keys
        hints = typing.get_type_hints(section_class)
        for field in dataclasses.fields(section_class):
            meta = field.metadata
            yield Option(
                section=section_name,
                name=field.name,
                type=Literal.__getitem__(meta["choices"]) if meta["choices"] else hints[field.name],
                default=field.default,
                description=meta["help"],
                minimum=meta["minimum"],
                maximum=meta["maximum"],
                const="true" if hints[field.name] is bool else meta["const"],
                unit=meta["unit"],
                synonyms=meta["synonyms"],
                short=meta["short"],
                value_name=meta["metavar"],
            )


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the name in ``known`` that is similar to ``word``, or None. A common section is not enough."""
    name = word.rpartition(".")[2]
    similar = [path for path in known if difflib.get_close_matches(name, [path.rpartition(".")[2]], cutoff=_SIMILAR)]
    return next(iter(difflib.get_close_matches(word, similar, n=1, cutoff=_SIMILAR)), None)


def short_names(options: Sequence[Option]) -> dict[str, Option]:
    """Return the options whose names are unique across sections, by name. Their flags may omit the section."""
    by_name: dict[str, list[Option]] = {}
    for item in options:
        by_name.setdefault(item.name, []).append(item)
    return {name: items[0] for name, items in by_name.items() if len(items) == 1 and items[0].short}
