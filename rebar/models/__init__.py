"""Network architectures and the changes a recipe applies to them."""
