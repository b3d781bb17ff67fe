"""Configuration: frozen dataclasses, filled in from YAML files and the command line.

An option is declared once, in ``options.py`` of the package that uses it::

    @dataclass(frozen=True)
    class LearningRateConfig:
        '''Learning rate schedule.'''

        lr: float = option(0.5, help="peak learning rate", minimum=0)

A *section* is such a dataclass, and a *schema* is a dataclass whose fields are sections. :func:`parse_config` reads the
YAML files given by ``--config-file``, then the command line, and returns one frozen instance of the schema. Environment
variables have no effect.
"""

from rebar.config.command_line import changed_options, config_name, given_value, parse_config
from rebar.config.options import ConfigError, Implied, Option, option, options_of, parse_bool, section
from rebar.config.yaml_files import build_config, flatten_config, load_config_files, to_yaml

__all__ = [
    "ConfigError",
    "Implied",
    "Option",
    "build_config",
    "changed_options",
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
