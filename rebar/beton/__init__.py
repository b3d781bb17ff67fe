"""FFCV's .beton files: read, written and described. Stock FFCV reads what this writes, and the reverse."""

from rebar.beton.encoder import OnBadImage
from rebar.beton.estimate import NUM_SAMPLED, Estimate
from rebar.beton.format import BetonError
from rebar.beton.images import ImagePolicy
from rebar.beton.reader import BetonFile
from rebar.beton.report import Tally, WriteReport
from rebar.beton.sidecar import Sidecar, read_sidecar
from rebar.beton.sources import ImageFolder, Source
from rebar.beton.writer import write_beton

__all__ = [
    "NUM_SAMPLED",
    "BetonError",
    "BetonFile",
    "Estimate",
    "ImageFolder",
    "ImagePolicy",
    "OnBadImage",
    "Sidecar",
    "Source",
    "Tally",
    "WriteReport",
    "read_sidecar",
    "write_beton",
]
