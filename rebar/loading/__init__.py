"""Read betons and deliver batches on the device. FFCV is optional: only FFCV pipelines import it."""

from rebar.loading.batches import Batch
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
