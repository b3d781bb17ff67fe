"""What keeps a network from learning its training images by heart: one technique a file, on the device."""
