"""From a .beton to batches on the device."""

from rebar.loading.corruption import CorruptSampleWarning
from rebar.loading.crops import CenterCrop, RandomResizedCrop
from rebar.loading.decode import CorruptSampleError
from rebar.loading.device import Normalizer
from rebar.loading.imagenet import IMAGENET_ON_HUB, DataConfig, build_train_loader, build_val_loader
from rebar.loading.loader import Loader
from rebar.loading.order import OrderOption
from rebar.loading.plan import Batch
from rebar.loading.waiting import WaitTimer

__all__ = [
    "IMAGENET_ON_HUB",
    "Batch",
    "CenterCrop",
    "CorruptSampleError",
    "CorruptSampleWarning",
    "DataConfig",
    "Loader",
    "Normalizer",
    "OrderOption",
    "RandomResizedCrop",
    "WaitTimer",
    "build_train_loader",
    "build_val_loader",
]
