"""The building blocks of ``train_imagenet.py``: run setup, checkpoints, evaluation and distributed training."""
