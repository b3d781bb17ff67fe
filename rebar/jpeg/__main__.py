"""Compile this package's code for this processor, so that nobody waits for it later: ``python -m rebar.jpeg``."""

from rebar.jpeg.kernel_cache import load_kernel

if __name__ == "__main__":
    load_kernel()
