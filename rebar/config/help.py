"""The text of ``--help`` and ``--help-all``: one column of flags, one of descriptions, each ending with the default."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rebar.config.options import Option, default_text

_FLAGS_WIDTH = 30
_MAX_WIDTH = 120

GENERAL = (
    ("--config-file, -C YAML", "YAML file of options; may be repeated, later files override earlier ones"),
    ("--print-config", "print the resolved configuration and exit"),
    ("--debug", "print the traceback of an error"),
)


@dataclass(frozen=True)
class Help:
    """What the help of a command contains besides its options."""

    program: str
    description: str
    examples: Sequence[str] = ()
    common: Sequence[str] = ()
    """The full names of the options of ``--help``; without any, it shows all."""
    aliases: str = ""
    """A table of other flags that are accepted."""


def format_help(
    content: Help,
    groups: Mapping[str, Sequence[Option]],
    short: Mapping[str, Option],
    values: Mapping[str, Any],
    *,
    everything: bool,
) -> str:
    """Return the help text. ``values`` are the options of the config files, which are shown as defaults."""
    parts = [
        f"usage: {content.program} [--config-file YAML] [--name VALUE] [--section.name VALUE]",
        content.description,
    ]
    if content.examples:
        parts.append("\n".join(["examples:", *(f"  {example}" for example in content.examples)]))
    everything = everything or not content.common
    general = [*GENERAL, ("--help-all", f"list all {sum(map(len, groups.values()))} options")]
    if everything:
        general = [*GENERAL, ("--help", "list the most common options")] if content.common else list(GENERAL)
        shown: Mapping[str, Sequence[Option]] = groups
    else:
        by_path = {item.path: item for items in groups.values() for item in items}
        shown = {"common options": [by_path[path] for path in content.common]}
    for title, items in shown.items():
        parts.append("\n".join([f"{title}:", *_lines((_flags(item, short), _text(item, values)) for item in items)]))
    parts.append("\n".join(["general:", *_lines(general)]))
    if everything and content.aliases:
        parts.append(f"Flags of other scripts that are accepted:\n{content.aliases}")
    parts.append(
        "The command line overrides --config-file, which overrides the defaults. Flags without VALUE may be\n"
        "followed by true or false."
    )
    return "\n\n".join(parts) + "\n"


def _flags(item: Option, short: Mapping[str, Option]) -> str:
    return f"{item.shortest_flag(short)} {item.metavar}".rstrip()


def _text(item: Option, values: Mapping[str, Any]) -> str:
    default = default_text(values.get(item.path, item.default))
    return f"{item.describe()} [{default}]" if default else item.describe()


def _lines(entries: Iterable[tuple[str, str]]) -> list[str]:
    width = min(shutil.get_terminal_size((100, 24)).columns, _MAX_WIDTH)
    lines: list[str] = []
    for flags, text in entries:
        first, *more = textwrap.wrap(text, max(width - _FLAGS_WIDTH, 40), break_on_hyphens=False)
        if len(flags) + 4 > _FLAGS_WIDTH:
            lines.append(f"  {flags}")
            flags = ""
        lines.append(f"  {flags}".ljust(_FLAGS_WIDTH) + first)
        lines += [" " * _FLAGS_WIDTH + line for line in more]
    return lines
