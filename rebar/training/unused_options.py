"""Find options that have no effect because their feature is disabled."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rebar.loading.imagenet import IMAGENET_ON_HUB
from rebar.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class UnusedWhen:
    """An option that has no effect if ``applies(config)``. ``reason`` completes the warning."""

    option: str
    reason: str
    applies: Callable[[TrainConfig], bool]


RULES = (
    UnusedWhen("lr.lr", "with lr.max_lr", lambda c: c.lr.max_lr is not None),
    UnusedWhen("training.momentum", "with training.optimizer lamb", lambda c: c.training.optimizer == "lamb"),
    *(
        UnusedWhen(f"resolution.{name}", "without max_res above min_res", lambda c: not _resizes(c))
        for name in ("start_ramp", "end_ramp", "round_to")
    ),
    UnusedWhen(
        "data.min_scale", "with regularization.augmentation none", lambda c: c.regularization.augmentation == "none"
    ),
    UnusedWhen("data.use_hf", "with given datasets", lambda c: _are_given(c.data.train_dataset, c.data.val_dataset)),
    *(
        UnusedWhen(f"model.{name}", "with model.pretrained", lambda c: c.model.pretrained)
        for name in ("initialization", "zero_init_residual")
    ),
    *(
        UnusedWhen(f"logging.{name}", "without logging.wandb", lambda c: not c.logging.wandb)
        for name in ("wandb_project", "wandb_name", "wandb_tags")
    ),
    UnusedWhen("checkpoint.overwrite", "without --resume none", lambda c: c.checkpoint.resume != "none"),
    UnusedWhen("checkpoint.spot_poll_seconds", "with spot_notice off", lambda c: c.checkpoint.spot_notice == "off"),
    UnusedWhen("training.price_per_hour", "without --dry-run", lambda c: not c.training.dry_run),
    UnusedWhen("training.find_lr_steps", "without --find-lr", lambda c: not c.training.find_lr),
)
"""Rules that involve several sections. A rule within a section is one of the section's ``conditions``."""


def _resizes(config: TrainConfig) -> bool:
    return config.resolution.max_res > config.resolution.min_res


def _are_given(*datasets: str) -> bool:
    """Return whether all datasets are given explicitly, so that use_hf has no effect."""
    return all(name not in ("", IMAGENET_ON_HUB) for name in datasets)


def unused_in_section(section: str, config: Any, conditions: Mapping[str, tuple[str, bool]]) -> Iterator[str]:
    """Yield a message for each option that differs from its default although its condition is not met.

    ``conditions`` maps an option's name to the text of its condition and whether it is met.
    """
    for name, (condition, is_met) in conditions.items():
        if not is_met and not _is_default(config, name):
            yield f"{section}.{name} = {getattr(config, name)} has no effect without {condition}"


def unused_options(config: TrainConfig) -> Iterator[str]:
    """Yield a message for each option of a run that has no effect."""
    yield from unused_in_section("lr", config.lr, config.lr.conditions())
    yield from unused_in_section("optimizer", config.optimizer, config.optimizer.conditions(config.training.optimizer))
    for section_name in ("loss", "regularization", "averaging", "execution"):
        section = getattr(config, section_name)
        yield from unused_in_section(section_name, section, section.conditions())
    for rule in RULES:
        section_name, _, name = rule.option.partition(".")
        section = getattr(config, section_name)
        if rule.applies(config) and not _is_default(section, name):
            yield f"{rule.option} = {getattr(section, name)} has no effect {rule.reason}"


def _is_default(section: Any, name: str) -> bool:
    defaults = {field.name: field.default for field in dataclasses.fields(section)}
    return bool(getattr(section, name) == defaults[name])
