"""Other ways to compute parts of a step, with the same numbers: a GPU decides which is the fastest."""

import torch
import torch.nn.functional as F
from torch import nn

from rebar.models.modifications import BlurPoolConv2d


def blur_then_convolve(layer: BlurPoolConv2d, x: torch.Tensor) -> torch.Tensor:
    """Compute a BlurPoolConv2d without optimization: blur all pixels, then apply the strided convolution."""
    blurred = F.conv2d(x, layer.blur.to(x.dtype), padding=1, groups=layer.in_channels)
    return F.conv2d(blurred, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def convolve_with_folded_blur(layer: BlurPoolConv2d, x: torch.Tensor) -> torch.Tensor:
    """Compute a BlurPoolConv2d as one convolution, whose kernel is two pixels larger.

    The layer pads the blurred image with zeros. Where its kernel reads this padding, the image is padded by its
    negative reflection about a row or column of zeros, whose blur is zero there. Needs padding of at most one pixel.
    """
    kernel = layer.blur[:1].to(layer.weight.dtype)
    height, width = layer.weight.shape[2:]
    folded = F.conv2d(layer.weight.reshape(-1, 1, height, width), kernel, padding=2)
    folded = folded.reshape(*layer.weight.shape[:2], height + 2, width + 2)
    if layer.padding == (0, 0):
        return F.conv2d(x, folded, layer.bias, layer.stride, 1, layer.dilation, layer.groups)
    if layer.padding != (1, 1) or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
        raise ValueError(f"{layer} is not supported")
    x = torch.cat([-x[:, :, :1], torch.zeros_like(x[:, :, :1]), x, torch.zeros_like(x[:, :, :1]), -x[:, :, -1:]], 2)
    x = torch.cat([-x[..., :1], torch.zeros_like(x[..., :1]), x, torch.zeros_like(x[..., :1]), -x[..., -1:]], 3)
    return F.conv2d(x, folded, layer.bias, layer.stride, 0, 1, layer.groups)


Logits = tuple[torch.Tensor, torch.Tensor]


def flip_in_two_passes(model: nn.Module, images: torch.Tensor) -> Logits:
    """Return the logits of images and of their horizontal flips, as rebar.training.evaluation computes them."""
    return model(images), model(images.flip(3))


def flip_in_one_batch(model: nn.Module, images: torch.Tensor) -> Logits:
    """Return the same from a single batch of twice the size, which needs twice the memory."""
    original, flipped = model(torch.cat([images, images.flip(3)])).chunk(2)
    return original, flipped


def flip_in_halves(model: nn.Module, images: torch.Tensor) -> Logits:
    """Return the same from two batches of the original size: half of the images and their flips each."""
    halves = [flip_in_one_batch(model, half) for half in images.chunk(2)]
    original, flipped = (torch.cat(parts) for parts in zip(*halves, strict=True))
    return original, flipped


FLIP_TTA = {"two passes": flip_in_two_passes, "one batch": flip_in_one_batch, "halves": flip_in_halves}
