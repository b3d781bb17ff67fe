"""JPEG pictures: decoding them into memory. Knows nothing of betons."""
