"""From a .beton to batches on the device."""

from rebar.loading.batch_source import Batch
from rebar.loading.crops import CenterCrop, RandomResizedCrop
from rebar.loading.decode import CorruptSampleError, CorruptSampleWarning
from rebar.loading.device import Normalizer
from rebar.loading.loader import Loader
from rebar.loading.order import OrderOption

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
