"""Rebar: train ImageNet ResNet-50 as fast as the hardware allows, from FFCV's .beton files."""

__version__ = "0.1.0"
