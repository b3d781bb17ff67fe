"""Configuration: frozen dataclasses <-> YAML files <-> the command line.

A knob is declared once, where its code is::

    @dataclass(frozen=True)
    class LearningRateConfig:
        '''Learning rate schedule.'''

        lr: float = option(0.5, help="peak learning rate", minimum=0)

A *schema* is a dataclass whose fields are such sections. :func:`parse_config` makes fastargs Sections
and Params of it, reads ``--config-file`` YAML files (which may ``extends:`` others), then the command
line, and returns one frozen instance. Nothing else, the environment least of all, changes a value.
"""

from rebar.config.command_line import config_name, given_value, parse_config
from rebar.config.options import ConfigError, Option, option, options_of, parse_bool, section
from rebar.config.yaml_files import build_config, flatten_config, load_config_files, to_yaml

__all__ = [
    "ConfigError",
    "Option",
    "build_config",
    "config_name",
    "flatten_config",
    "given_value",
    "load_config_files",
    "option",
    "options_of",
    "parse_bool",
    "parse_config",
    "section",
    "to_yaml",
]
