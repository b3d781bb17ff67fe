"""Settings that change nothing, because what they belong to is off."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rebar.loading.imagenet import IMAGENET_ON_HUB
from rebar.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Idle:
    """A setting that has no effect ``where`` (in words) another one is as ``applies`` says."""

    setting: str
    where: str
    applies: Callable[[TrainConfig], bool]


IDLE = (
    Idle("lr.lr", "beside lr.max_lr", lambda c: c.lr.max_lr is not None),
    Idle("training.momentum", "with training.optimizer lamb", lambda c: c.training.optimizer == "lamb"),
    *(
        Idle(f"resolution.{name}", "without max_res above min_res", lambda c: not _grows(c))
        for name in ("start_ramp", "end_ramp", "round_to")
    ),
    Idle("data.min_scale", "with regularization.augmentation none", lambda c: c.regularization.augmentation == "none"),
    Idle("data.use_hf", "beside given data sets", lambda c: _are_given(c.data.train_dataset, c.data.val_dataset)),
    *(
        Idle(f"model.{name}", "with model.pretrained", lambda c: c.model.pretrained)
        for name in ("initialization", "zero_init_residual")
    ),
    *(
        Idle(f"logging.{name}", "without logging.wandb", lambda c: not c.logging.wandb)
        for name in ("wandb_project", "wandb_name", "wandb_tags")
    ),
    Idle("checkpoint.overwrite", "without --resume none", lambda c: c.checkpoint.resume != "none"),
    Idle("checkpoint.spot_poll_seconds", "with spot_notice off", lambda c: c.checkpoint.spot_notice == "off"),
    Idle("training.price_per_hour", "without --dry-run", lambda c: not c.training.dry_run),
    Idle("training.find_lr_steps", "without --find-lr", lambda c: not c.training.find_lr),
)
"""Those whose reason lies elsewhere than in a section's ``switches``."""


def _grows(config: TrainConfig) -> bool:
    return config.resolution.max_res > config.resolution.min_res


def _are_given(*data_sets: str) -> bool:
    """Whether all are named, and not what use_hf fills in."""
    return all(name not in ("", IMAGENET_ON_HUB) for name in data_sets)


def unused_settings(section: str, config: Any, switches: Mapping[str, tuple[str, bool]]) -> Iterator[str]:
    """One sentence for each setting that is not at its default and has no effect.

    ``switches`` says for a setting's name what it needs, and whether that is given.
    """
    for name, (needs, given) in switches.items():
        if not given and not _is_default(config, name):
            yield f"{section}.{name} = {getattr(config, name)} has no effect without {needs}"


def unused_setting_names(config: TrainConfig) -> Iterator[str]:
    """One sentence for each setting of a run that changes nothing."""
    yield from unused_settings("lr", config.lr, config.lr.switches())
    yield from unused_settings("optimizer", config.optimizer, config.optimizer.switches(config.training.optimizer))
    for section in ("loss", "regularization", "averaging", "execution"):
        settings = getattr(config, section)
        yield from unused_settings(section, settings, settings.switches())
    for idle in IDLE:
        section, _, name = idle.setting.partition(".")
        settings = getattr(config, section)
        if idle.applies(config) and not _is_default(settings, name):
            yield f"{idle.setting} = {getattr(settings, name)} has no effect {idle.where}"


def _is_default(settings: Any, name: str) -> bool:
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    return bool(getattr(settings, name) == defaults[name])
