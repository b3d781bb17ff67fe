"""JPEG decoding, cropping and lossless rewriting in memory, independent of beton files."""
