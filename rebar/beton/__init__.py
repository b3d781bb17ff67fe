"""FFCV's .beton files: read, written and described. Stock FFCV reads what this writes, and the reverse."""

from rebar.beton.format import BetonError
from rebar.beton.images import ImagePolicy
from rebar.beton.reader import BetonFile
from rebar.beton.sidecar import Sidecar, read_sidecar
from rebar.beton.sources import ImageFolder, Source
from rebar.beton.writer import NUM_SAMPLED, WriteReport, write_beton

__all__ = [
    "NUM_SAMPLED",
    "BetonError",
    "BetonFile",
    "ImageFolder",
    "ImagePolicy",
    "Sidecar",
    "Source",
    "WriteReport",
    "read_sidecar",
    "write_beton",
]
