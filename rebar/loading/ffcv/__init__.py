"""FFCV pipelines in our loader, and our decoders in an FFCV loader."""
