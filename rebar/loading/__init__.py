"""From a .beton to batches on the device."""

from rebar.loading.corruption import CorruptSampleWarning
from rebar.loading.crops import CenterCrop, RandomResizedCrop
from rebar.loading.decode import CorruptSampleError
from rebar.loading.device import Normalizer
from rebar.loading.loader import Loader
from rebar.loading.order import OrderOption
from rebar.loading.plan import Batch

__all__ = [
    "Batch",
    "CenterCrop",
    "CorruptSampleError",
    "CorruptSampleWarning",
    "Loader",
    "Normalizer",
    "OrderOption",
    "RandomResizedCrop",
]
