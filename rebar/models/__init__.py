"""Network architectures, and the modifications that a recipe applies to them."""
