"""Where pictures come from: one file a kind of source, all of them a :class:`Source`."""

from rebar.beton.sources.image_folder import ImageFolder
from rebar.beton.sources.registry import Request, open_source
from rebar.beton.sources.source import BlockSource, Source, blocks_of, labels_of

__all__ = ["BlockSource", "ImageFolder", "Request", "Source", "blocks_of", "labels_of", "open_source"]
