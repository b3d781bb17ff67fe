"""FFCV pipelines in Rebar's Loader, and Rebar's decoders in FFCV's loader."""
