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

from rebar.config.building import build_config, flatten_config, to_yaml
from rebar.config.command_line import config_name, given_value, parse_config
from rebar.config.files import load_config_files
from rebar.config.knobs import ConfigError, Knob, knob, knobs_of, section, truth

__all__ = [
    "ConfigError",
    "Knob",
    "build_config",
    "config_name",
    "flatten_config",
    "given_value",
    "knob",
    "knobs_of",
    "load_config_files",
    "parse_config",
    "section",
    "to_yaml",
    "truth",
]
