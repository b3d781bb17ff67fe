"""From a .beton to batches on the device."""

from rebar.loading.crops import CenterCrop, RandomResizedCrop
from rebar.loading.device import Normalizer
from rebar.loading.imagenet import DataConfig, build_train_loader, build_val_loader
from rebar.loading.loader import Batch, Loader
from rebar.loading.waiting import WaitTimer

__all__ = [
    "Batch",
    "CenterCrop",
    "DataConfig",
    "Loader",
    "Normalizer",
    "RandomResizedCrop",
    "WaitTimer",
    "build_train_loader",
    "build_val_loader",
]
