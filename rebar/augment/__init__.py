"""Augmentation and regularization of training batches on the device, one technique per module."""
