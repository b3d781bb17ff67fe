"""Compile the JPEG kernels for this CPU ahead of time: ``python -m rebar.jpeg``."""

from rebar.jpeg.kernel_cache import load_kernel

if __name__ == "__main__":
    load_kernel()
