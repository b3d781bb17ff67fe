"""numba kernels that decode, resize and transcode JPEGs; :mod:`rebar.jpeg.kernel_cache` compiles them ahead of time."""
