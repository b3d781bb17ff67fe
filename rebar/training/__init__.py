"""The parts of a training run, which ``train_imagenet.py`` combines."""
