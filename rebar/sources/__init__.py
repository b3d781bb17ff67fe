"""Image sources, one module per kind. Each implements :class:`rebar.beton.images.Source`."""

from rebar.sources.files import ImageFolder
from rebar.sources.registry import Request, open_source

__all__ = ["ImageFolder", "Request", "open_source"]
