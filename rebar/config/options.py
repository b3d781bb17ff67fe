"""A setting as its code declares it: type, default, range and one line of help."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from fastargs.validation import Checker

from rebar.errors import RebarError

Section = TypeVar("Section")
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


class ConfigError(RebarError):
    """A setting that is unknown, of the wrong type, or out of range."""


def option(
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


def section(section_class: type[Section]) -> Section:
    """Declare a section of a schema, all of its knobs at their defaults."""
    return dataclasses.field(default_factory=section_class)


@dataclass(frozen=True)
class Option(Checker):
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


def parse_bool(text: str) -> bool | None:
    """What a word for true or false means; None for any other."""
    word = text.strip().lower()
    return word in _TRUE if word in _TRUE | _FALSE else None


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
        if (meant := parse_bool(text)) is not None:
            return meant
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


def options_of(schema: type) -> Iterator[Option]:
    """All knobs of a schema, section by section."""
    for section_name, section_class in typing.get_type_hints(schema).items():
        if not dataclasses.is_dataclass(section_class):
            continue  # a ClassVar such as ignored_keys
        hints = typing.get_type_hints(section_class)
        for field in dataclasses.fields(section_class):
            meta = field.metadata
            yield Option(
                section=section_name,
                name=field.name,
                type=hints[field.name],
                default=field.default,
                description=meta["help"],
                minimum=meta["minimum"],
                maximum=meta["maximum"],
                bare="true" if hints[field.name] is bool else meta["bare"],
            )


def short_names(knobs: Sequence[Option]) -> dict[str, Option]:
    """Last names that only one section has: these may be written without the section."""
    by_name: dict[str, list[Option]] = {}
    for item in knobs:
        by_name.setdefault(item.name, []).append(item)
    return {name: items[0] for name, items in by_name.items() if len(items) == 1}
