"""Read betons and deliver batches on the device. FFCV is optional: only FFCV pipelines import it."""

from rebar.loading.decode import CorruptSampleError, CorruptSampleWarning
from rebar.loading.loader import Loader
from rebar.loading.order import LoaderAttributeError, OrderOption
from rebar.loading.prefetch import Batch, Normalizer
from rebar.loading.rng import CenterCrop, RandomResizedCrop

__all__ = [
    "Batch",
    "CenterCrop",
    "CorruptSampleError",
    "CorruptSampleWarning",
    "Loader",
    "LoaderAttributeError",
    "Normalizer",
    "OrderOption",
    "RandomResizedCrop",
]
