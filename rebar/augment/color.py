"""Changes of colour for a batch of uint8 ``[n, 3, h, w]`` images, every image by its own amount.

Results are those of ``torchvision.transforms.v2.functional`` on uint8, up to a level where a float is
rounded otherwise. ``factors`` are numpy arrays ``[n]``; 1 leaves an image as it is.

Colour jitter: random brightness, contrast, saturation and hue.

Krizhevsky et al., 2012, and Howard, 2013, in the form of torchvision's ColorJitter. The four come in an
order drawn for each batch, the amounts for each image.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rebar.augment.rng import BatchPosition, per_sample, upload
from rebar.loading.rng import Stream

Factors = NDArray[np.float64]


def adjust_brightness(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Times the factor."""
    return (images * per_sample(factors, images)).clamp_(0, 255).to(torch.uint8)


def adjust_saturation(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Away from the grey image, or towards it."""
    return _blend(images, _grey(images), factors)


def adjust_contrast(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Away from the mean grey, or towards it."""
    return _blend(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def adjust_sharpness(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Away from the blurred image, or towards it; the outermost pixels stay."""
    if min(images.shape[2:]) <= 2:
        return images
    exact = images.to(torch.float32)
    kernel = exact.new_ones(3, 3)
    kernel[1, 1].fill_(5)  # an assignment would copy the 5 from the host, and wait for that
    # Whole numbers up to 13 * 255: exact in TF32 too, which rounding needs.
    blurred = F.conv2d(exact, kernel.expand(3, 1, 3, 3), groups=3).div_(13).round_()
    inside = exact[:, :, 1:-1, 1:-1]
    inside += (blurred - inside) * per_sample(1 - factors, images)
    return exact.clamp_(0, 255).to(torch.uint8)


def adjust_hue(images: torch.Tensor, shifts: Factors) -> torch.Tensor:
    """Turn the colour circle by ``shifts`` of it, -0.5 to 0.5."""
    rgb = images.to(torch.float32) / 255
    low, high = torch.aminmax(rgb, dim=1)
    spread = high - low
    grey = spread == 0
    red, green, blue = ((high[:, None] - rgb) / torch.where(grey, 1, spread)[:, None]).unbind(1)
    is_red, is_green = rgb[:, 0] == high, rgb[:, 1] == high
    sector = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    hue = torch.where(grey, 0, sector / 6) + per_sample(shifts, images)[:, 0]
    saturation = torch.where(grey, 0, spread / torch.where(grey, 1, high))
    # HSV to RGB without cases: how far each of the three colours is from the hue, on a circle of six
    offsets = torch.arange(5, 0, -2, device=images.device).view(1, 3, 1, 1)
    distance = torch.remainder(offsets + 6 * hue[:, None], 6)
    weight = torch.minimum(distance, 4 - distance).clamp_(0, 1)
    turned = high[:, None] * (1 - saturation[:, None] * weight)
    return (turned * (256 - 1e-3)).to(torch.uint8)


def posterize(images: torch.Tensor, bits: NDArray[np.int64]) -> torch.Tensor:
    """Keep the upper ``bits`` (0 to 8) of every value."""
    masks = upload((255 << (8 - bits)) & 255, images.device, torch.uint8).view(-1, 1, 1, 1)
    return images & masks


def solarize(images: torch.Tensor, thresholds: Factors) -> torch.Tensor:
    """Invert every value that is not below the threshold (0 to 255)."""
    return torch.where(images >= per_sample(thresholds, images), 255 - images, images)


def autocontrast(images: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0 … 255; a channel of one value stays."""
    exact = images.to(torch.float32)
    low, high = exact.amin(dim=(2, 3), keepdim=True), exact.amax(dim=(2, 3), keepdim=True)
    flat = high == low
    scale = torch.where(flat, 1, (high - low) * (1 / 255))
    return ((exact - torch.where(flat, 0, low)) / scale).clamp_(0, 255).to(torch.uint8)


def equalize(images: torch.Tensor) -> torch.Tensor:
    """Make all values of a channel about equally frequent, by Pillow's arithmetic."""
    values = images.flatten(2).to(torch.int64)
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    up_to = counts.cumsum(2)
    largest = values.amax(2, keepdim=True)
    step = (values.shape[2] - counts.gather(2, largest)).div(255, rounding_mode="floor")
    below = F.pad(up_to[..., :-1], (1, 0))
    table = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    equalized = table.gather(2, values).view(images.shape)
    return torch.where((step == 0)[..., None], images, equalized.to(torch.uint8))


def _grey(images: torch.Tensor) -> torch.Tensor:
    """The luma, whole numbers as float32 ``[n, 1, h, w]``."""
    red, green, blue = images.to(torch.float32).unbind(1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor_()[:, None]


def _blend(images: torch.Tensor, other: torch.Tensor, factors: Factors) -> torch.Tensor:
    mixed = images * per_sample(factors, images) + other * per_sample(1 - factors, images)
    return mixed.clamp_(0, 255).to(torch.uint8)


_ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def color_jitter(images: torch.Tensor, position: BatchPosition, *, strength: float, hue: float) -> torch.Tensor:
    """Change uint8 ``[n, 3, h, w]`` images by factors of 1 ± ``strength`` and the hue by up to ± ``hue`` (0.5)."""
    draws = 2 * position.uniforms(Stream.COLOR_JITTER, 4) - 1
    amounts = np.concatenate([np.maximum(1 + strength * draws[:, :3], 0), hue * draws[:, 3:]], axis=1)
    used = [number for number in range(4) if (strength if number < 3 else hue) > 0]
    for number in position.generator(Stream.COLOR_JITTER).permutation(used):
        images = _ADJUSTMENTS[number](images, amounts[:, number])
    return images
