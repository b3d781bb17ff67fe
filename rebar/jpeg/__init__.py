"""JPEG images: decoding them into memory. Knows nothing of betons."""
