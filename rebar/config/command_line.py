"""Settings on the command line: flags, ``--help``, ``--config-file``."""

import argparse
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import fastargs

from rebar.config.options import ConfigError, Option, options_of, short_names
from rebar.config.yaml_files import build_config, load_config_files, to_yaml

Schema = TypeVar("Schema")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message} (see --help)")


def _declare(schema: type, knobs: Sequence[Option]) -> fastargs.Config:
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


def _make_parser(schema: type, knobs: Sequence[Option], description: str, example: str) -> argparse.ArgumentParser:
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
    declared, short = _declare(schema, knobs), short_names(knobs)
    for section_path, entries in declared.sections_to_entries.items():
        group = parser.add_argument_group(declared.sections[section_path].desc)
        for entry in entries:
            param = declared.entries[entry]
            item: Option = param.checker
            full = [f"--{item.path}", f"--{item.path.replace('_', '-')}"]
            names = [f"--{item.name.replace('_', '-')}", f"--{item.name}"] if item.name in short else []
            bare: dict[str, Any] = {} if item.bare is None else {"nargs": "?", "const": item.bare}
            shown, *hidden = dict.fromkeys(names + full)
            text = str(param).replace("%", "%%")
            group.add_argument(shown, dest=item.path, default=argparse.SUPPRESS, help=text, metavar="X", **bare)
            for name in hidden:  # other spellings work, but would crowd the help
                parser.add_argument(name, dest=item.path, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **bare)
    return parser


def _refuse_unknown(unknown: Sequence[str], parser: argparse.ArgumentParser, knobs: Sequence[Option]) -> None:
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
    knobs = list(options_of(schema))
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
    files = _values_of(("--config-file", "-C"), argv)
    return Path(files[-1]).stem if files else None


def given_value(path: str, argv: Sequence[str]) -> Any:
    """What a command line, else its ``--config-file``, says of the setting ``section.name``; None for nothing.

    As it is written there: it was not checked. Raises ConfigError for files that cannot be read.
    """
    words = _values_of((f"--{path}", f"--{path.replace('_', '-')}", f"--{path.rpartition('.')[2]}"), argv)
    return words[-1] if words else load_config_files(_values_of(("--config-file", "-C"), argv)).get(path)


def _values_of(flags: Sequence[str], argv: Sequence[str]) -> list[str]:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument(*dict.fromkeys(flags), dest="values", action="append", default=[])
    values: list[str] = parser.parse_known_args(list(argv))[0].values
    return values
