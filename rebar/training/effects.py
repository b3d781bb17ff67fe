"""Settings that change nothing, because what they belong to is off."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rebar.training.config import TrainConfig


def without_effect(section: str, config: Any, switches: Mapping[str, tuple[str, bool]]) -> Iterator[str]:
    """One sentence for each setting that is not at its default and has no effect.

    ``switches`` says for a setting's name what it needs, and whether that is given.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, (needs, given) in switches.items():
        value = getattr(config, name)
        if not given and value != defaults[name]:
            yield f"{section}.{name} = {value} has no effect without {needs}"


def settings_without_effect(config: TrainConfig) -> Iterator[str]:
    """One sentence for each setting of a run that changes nothing."""
    yield from without_effect("lr", config.lr, config.lr.switches())
    yield from without_effect("optimizer", config.optimizer, config.optimizer.switches(config.training.optimizer))
    for section in ("loss", "regularization", "averaging", "execution"):
        settings = getattr(config, section)
        yield from without_effect(section, settings, settings.switches())
