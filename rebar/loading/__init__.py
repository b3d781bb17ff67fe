"""Read betons and deliver batches on the device. FFCV is optional: only FFCV pipelines import it.

The names are imported when they are first used: most of them need torch, and :mod:`rebar.loading.options` does not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rebar.loading.crops import CenterCrop, RandomResizedCrop
    from rebar.loading.decode import CorruptSampleError, CorruptSampleWarning
    from rebar.loading.loader import Loader
    from rebar.loading.order import LoaderAttributeError, OrderOption
    from rebar.loading.prefetch import Batch, Normalizer

_MODULES = {
    "crops": ("CenterCrop", "RandomResizedCrop"),
    "decode": ("CorruptSampleError", "CorruptSampleWarning"),
    "loader": ("Loader",),
    "order": ("LoaderAttributeError", "OrderOption"),
    "prefetch": ("Batch", "Normalizer"),
}

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


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
