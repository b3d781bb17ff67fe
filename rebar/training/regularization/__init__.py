"""What keeps a network from learning its training pictures by heart: one technique a file, on the device."""
