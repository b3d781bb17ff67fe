"""Decoder, resize and transcoder kernels: compiled ahead of time by :mod:`rebar.jpeg.kernel_cache`."""
