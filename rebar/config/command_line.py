"""Options on the command line: flags, ``--help``, ``--config-file`` and ``--print-config``."""

import argparse
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fastargs

from rebar.config.help import Help, format_help
from rebar.config.options import ConfigError, Option, closest, options_of, short_names, with_implied
from rebar.config.yaml_files import COMMAND_LINE, build_config, load_config_files, to_yaml

Schema = TypeVar("Schema")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"command line: {message}. See --help.", code="config-invalid-value")


def _declare(schema: type, options: Sequence[Option]) -> fastargs.Config:
    """Return the schema as fastargs Sections and Params."""
    declared = fastargs.Config()
    hints = typing.get_type_hints(schema)
    for item in options:
        if declared.sections[(item.section,)] is None:
            title = (hints[item.section].__doc__ or item.section).strip().splitlines()[0].rstrip(".")
            fastargs.Section(item.section, title, config_descriptor=declared)
        default = None if item.required else item.default
        param = fastargs.Param(item, item.description, default=default, required=item.required)
        declared.sections[(item.section,)].params(**{item.name: param})
    return declared


def _make_parser(options: Sequence[Option]) -> argparse.ArgumentParser:
    # fastargs' own argparse integration reads sys.argv and lets environment variables override options, so only its
    # declarations are used.
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--config-file", "-C", action="append", default=[])
    for flag in ("--print-config", "--debug", "--help-all"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--help", "-h", action="store_true")
    short = short_names(options)
    for item in options:
        full = [f"--{item.path}", f"--{item.path.replace('_', '-')}"]
        names = [item.flag, f"--{item.name}"] if item.name in short else []
        const: dict[str, Any] = {} if item.const is None else {"nargs": "?", "const": item.const}
        parser.add_argument(*dict.fromkeys(names + full), dest=item.path, default=argparse.SUPPRESS, **const)
    return parser


def _groups(schema: type, options: Sequence[Option]) -> dict[str, list[Option]]:
    """Return the options by the title of their section."""
    declared = _declare(schema, options)
    return {
        declared.sections[path].desc: [declared.entries[entry].checker for entry in entries]
        for path, entries in declared.sections_to_entries.items()
    }


def _describe_unknown(
    unknown: Sequence[str], parser: argparse.ArgumentParser, options: Sequence[Option], hints: Mapping[str, str]
) -> ConfigError:
    """Return an error that lists all words of the command line that are not known."""
    by_name = {known.lstrip("-"): known for known in parser._option_string_actions}
    described: list[str] = []
    ambiguous = 0
    for flag in dict.fromkeys(word.partition("=")[0] for word in unknown if word.startswith("-")):
        similar = closest(flag.lstrip("-"), by_name)
        hint = hints.get(flag.replace("_", "-")) or (f"did you mean {by_name[similar]}?" if similar else "")
        same_name = [f"--{item.path}" for item in options if item.flag == flag.replace("_", "-")]
        if same_name:
            hint = f"in several sections: use {' or '.join(same_name)}"
            ambiguous += 1
        described.append(flag + (f" ({hint})" if hint else ""))
    if not described:
        text = f"unexpected argument '{unknown[0]}'. Every value needs a flag before it: see --help."
    elif ambiguous == len(described):
        text = f"ambiguous {'options' if ambiguous > 1 else 'option'} {', '.join(described)}."
    else:
        text = f"unknown {'options' if len(described) > 1 else 'option'} {', '.join(described)}. See --help-all."
    is_ambiguous = 0 < ambiguous == len(described)
    return ConfigError(
        f"{COMMAND_LINE}: {text}", code="config-ambiguous-option" if is_ambiguous else "config-unknown-option"
    )


def parse_config(
    schema: type[Schema],
    argv: Sequence[str],
    *,
    description: str,
    examples: Sequence[str] = (),
    aliases: str = "",
    resolve: Callable[[Schema], Schema] = lambda config: config,
) -> Schema:
    """Return a frozen ``schema`` instance: the command line overrides YAML files, which override the defaults.

    ``--help``, ``--help-all`` and ``--print-config`` print and exit; ``aliases`` is an additional part of the help.
    ``resolve`` is applied to the result before it is returned or printed. Raises ConfigError with all unknown options,
    for missing options, invalid values and unreadable files.
    """
    options = list(options_of(schema))
    parser = _make_parser(options)
    ignored = getattr(schema, "ignored_keys", {})
    for path in ignored:  # as in YAML files, with a warning
        parser.add_argument(f"--{path}", dest=path, nargs="?", const="", default=argparse.SUPPRESS)
    namespace, unknown = parser.parse_known_args(list(argv))
    if namespace.help or namespace.help_all:
        content = Help(Path(sys.argv[0]).name, description, examples, getattr(schema, "common", ()), aliases)
        values = load_config_files(namespace.config_file, schema)
        groups = _groups(schema, options)
        print(format_help(content, groups, short_names(options), values, everything=namespace.help_all), end="")
        raise SystemExit(0)
    problems: list[ConfigError] = []
    if unknown:
        problems.append(_describe_unknown(unknown, parser, options, getattr(schema, "flag_hints", {})))
    given = with_implied(schema, {path: value for path, value in vars(namespace).items() if "." in path})
    from_files = load_config_files(namespace.config_file, schema)
    files = ", ".join(str(name) for name in namespace.config_file)
    try:
        if from_files:  # checked separately, so that the message names the right file
            required = {item.path: given[item.path] for item in options if item.required and item.path in given}
            build_config(schema, {**from_files, **required}, origin=files)
    except ConfigError as error:
        problems.append(error)
    if problems:
        raise ConfigError("\n".join(map(str, problems)), code=problems[0].code)
    values = {path: value for path, value in from_files.items() if path not in ignored}
    config = resolve(build_config(schema, {**values, **given}, origin=COMMAND_LINE))
    if namespace.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def config_name(argv: Sequence[str]) -> str | None:
    """Return the stem of the last ``--config-file`` on a command line, NAME for ``FILE#NAME``, or None."""
    files = _values_of(("--config-file", "-C"), argv)
    if not files:
        return None
    file, _, part = files[-1].partition("#")
    return part or Path(file).stem


def changed_options(config: Any, argv: Sequence[str]) -> dict[str, Any]:
    """Return the options, as ``{"section.name": value}``, in which ``config`` differs from its YAML files.

    ``argv`` is the command line that ``config`` comes from. An option that no file sets has its default there.
    """
    files = load_config_files(_values_of(("--config-file", "-C"), argv), type(config))
    changed: dict[str, Any] = {}
    for item in options_of(type(config)):
        before = item.check(files[item.path]) if item.path in files else item.default
        value = getattr(getattr(config, item.section), item.name)
        if value != before:
            changed[item.path] = value
    return changed


def given_value(path: str, argv: Sequence[str]) -> Any:
    """Return the unchecked value of the option ``section.name`` on the command line or in its YAML files, else None.

    Raises ConfigError if a file cannot be read.
    """
    names = (path, path.rpartition(".")[2])
    words = _values_of([f"--{spelling}" for name in names for spelling in (name, name.replace("_", "-"))], argv)
    return words[-1] if words else load_config_files(_values_of(("--config-file", "-C"), argv)).get(path)


def _values_of(flags: Sequence[str], argv: Sequence[str]) -> list[str]:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument(*dict.fromkeys(flags), dest="values", action="append", default=[])
    values: list[str] = parser.parse_known_args(list(argv))[0].values
    return values
