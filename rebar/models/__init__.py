"""Network architectures and the changes that recipes apply to them."""
