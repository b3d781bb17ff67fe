"""The parts of a training run; ``train_imagenet.py`` puts them together."""
