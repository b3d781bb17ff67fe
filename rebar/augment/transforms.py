"""Color and geometric operations on batches of uint8 ``[n, 3, h, w]`` images, with separate parameters per image.

Color operations equal those of ``torchvision.transforms.v2.functional``, up to a rounding difference of one level.
``factors`` are NumPy arrays ``[n]``; a factor of 1 leaves an image unchanged. Shear, translation and rotation are a
matrix per image, and one pass over the batch applies them. They sample the nearest neighbor and fill with black, as in
torchvision's RandAugment and TrivialAugment.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from rebar.loading.rng import BatchPosition, Stream

Factors = NDArray[np.float64]


def adjust_brightness(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Multiply by the factors."""
    return (images * per_sample(factors, images)).clamp_(0, 255).to(torch.uint8)


def adjust_saturation(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Blend with the grayscale image."""
    return _blend(images, _grayscale(images), factors)


def adjust_contrast(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Blend with the mean of the grayscale image."""
    return _blend(images, _grayscale(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def adjust_sharpness(images: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Blend with the blurred image; the border pixels are unchanged."""
    if min(images.shape[2:]) <= 2:
        return images
    values = images.to(torch.float32)
    kernel = values.new_ones(3, 3)
    kernel[1, 1].fill_(5)  # assigning 5 would copy from the host and synchronize
    # Integers up to 13 * 255 are exact in TF32 too, so rounding is the same on every device.
    blurred = F.conv2d(values, kernel.expand(3, 1, 3, 3), groups=3).div_(13).round_()
    interior = values[:, :, 1:-1, 1:-1]
    interior += (blurred - interior) * per_sample(1 - factors, images)
    return values.clamp_(0, 255).to(torch.uint8)


def adjust_hue(images: torch.Tensor, shifts: Factors) -> torch.Tensor:
    """Shift the hue by ``shifts``, in turns, -0.5 to 0.5."""
    rgb = images.to(torch.float32) / 255
    low, high = torch.aminmax(rgb, dim=1)
    chroma = high - low
    gray = chroma == 0
    red, green, blue = ((high[:, None] - rgb) / torch.where(gray, 1, chroma)[:, None]).unbind(1)
    is_red, is_green = rgb[:, 0] == high, rgb[:, 1] == high
    sector = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    hue = torch.where(gray, 0, sector / 6) + per_sample(shifts, images)[:, 0]
    saturation = torch.where(gray, 0, chroma / torch.where(gray, 1, high))
    # HSV to RGB without branches: each channel's weight depends on its distance from the hue on the circle of six.
    offsets = torch.arange(5, 0, -2, device=images.device).view(1, 3, 1, 1)
    distance = torch.remainder(offsets + 6 * hue[:, None], 6)
    weight = torch.minimum(distance, 4 - distance).clamp_(0, 1)
    shifted = high[:, None] * (1 - saturation[:, None] * weight)
    return (shifted * (256 - 1e-3)).to(torch.uint8)


def posterize(images: torch.Tensor, bits: NDArray[np.int64]) -> torch.Tensor:
    """Keep the upper ``bits`` (0 to 8) of every value."""
    masks = upload((255 << (8 - bits)) & 255, images.device, torch.uint8).view(-1, 1, 1, 1)
    return images & masks


def solarize(images: torch.Tensor, thresholds: Factors) -> torch.Tensor:
    """Invert every value that is at least the threshold (0 to 255)."""
    return torch.where(images >= per_sample(thresholds, images), 255 - images, images)


def autocontrast(images: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0 to 255; a constant channel is unchanged."""
    values = images.to(torch.float32)
    low, high = values.amin(dim=(2, 3), keepdim=True), values.amax(dim=(2, 3), keepdim=True)
    constant = high == low
    scale = torch.where(constant, 1, (high - low) * (1 / 255))
    return ((values - torch.where(constant, 0, low)) / scale).clamp_(0, 255).to(torch.uint8)


def equalize(images: torch.Tensor) -> torch.Tensor:
    """Equalize each channel's histogram, with Pillow's integer arithmetic."""
    values = images.flatten(2).to(torch.int64)
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    cumulative = counts.cumsum(2)
    largest = values.amax(2, keepdim=True)
    step = (values.shape[2] - counts.gather(2, largest)).div(255, rounding_mode="floor")
    below = F.pad(cumulative[..., :-1], (1, 0))
    table = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    equalized = table.gather(2, values).view(images.shape)
    return torch.where((step == 0)[..., None], images, equalized.to(torch.uint8))


def _grayscale(images: torch.Tensor) -> torch.Tensor:
    """Return the luma, rounded down, float32 ``[n, 1, h, w]``."""
    red, green, blue = images.to(torch.float32).unbind(1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor_()[:, None]


def _blend(images: torch.Tensor, other: torch.Tensor, factors: Factors) -> torch.Tensor:
    blended = images * per_sample(factors, images) + other * per_sample(1 - factors, images)
    return blended.clamp_(0, 255).to(torch.uint8)


_ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def color_jitter(images: torch.Tensor, position: BatchPosition, *, strength: float, hue: float) -> torch.Tensor:
    """Apply torchvision's ColorJitter to uint8 ``[n, 3, h, w]`` images (Krizhevsky et al., 2012; Howard, 2013).

    Brightness, contrast and saturation change by factors of 1 ± ``strength``, the hue by up to ± ``hue`` (at most 0.5).
    The factors are drawn per image, the order of the four per global batch.
    """
    draws = 2 * position.uniforms(Stream.COLOR_JITTER, 4) - 1
    factors = np.concatenate([np.maximum(1 + strength * draws[:, :3], 0), hue * draws[:, 3:]], axis=1)
    used = [number for number in range(4) if (strength if number < 3 else hue) > 0]
    for number in position.generator(Stream.COLOR_JITTER).permutation(used):
        images = _ADJUSTMENTS[number](images, factors[:, number])
    return images


Matrices = NDArray[np.float64]
"""``[n, 2, 3]``: maps an output pixel to its source pixel; both are measured from the center, in pixels."""


def shear_x(factors: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Shift each row by its distance from the top edge times the factor."""
    del width
    matrices = _identity(len(factors))
    matrices[:, 0, 1] = factors
    matrices[:, 0, 2] = factors * height / 2
    return matrices


def shear_y(factors: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Shift each column by its distance from the left edge times the factor."""
    del height
    matrices = _identity(len(factors))
    matrices[:, 1, 0] = factors
    matrices[:, 1, 2] = factors * width / 2
    return matrices


def translate_x(pixels: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Shift to the right by integer pixels."""
    del height, width
    matrices = _identity(len(pixels))
    matrices[:, 0, 2] = -np.trunc(pixels)
    return matrices


def translate_y(pixels: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Shift down by integer pixels."""
    del height, width
    matrices = _identity(len(pixels))
    matrices[:, 1, 2] = -np.trunc(pixels)
    return matrices


def rotate(degrees: NDArray[np.float64], height: int, width: int) -> Matrices:
    """Rotate counterclockwise around the center."""
    del height, width
    radians = np.deg2rad(degrees)
    matrices = _identity(len(degrees))
    matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(radians)
    matrices[:, 0, 1], matrices[:, 1, 0] = -np.sin(radians), np.sin(radians)
    return matrices


def _identity(count: int) -> Matrices:
    return np.tile(np.eye(2, 3), (count, 1, 1))


def transform(images: torch.Tensor, matrices: Matrices) -> torch.Tensor:
    """Resample uint8 ``[n, c, h, w]`` images, each by its own matrix."""
    height, width = images.shape[2:]
    a = upload(matrices, images.device)[:, :, :, None, None]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    # Not a matrix product: TF32 would round the coordinates by fractions of a pixel.
    source_x = (a[:, 0, 0] * x + a[:, 0, 1] * y + a[:, 0, 2]) / (width / 2)
    source_y = (a[:, 1, 0] * x + a[:, 1, 1] * y + a[:, 1, 2]) / (height / 2)
    grid = torch.stack([source_x, source_y], dim=3)
    sampled = F.grid_sample(images.to(torch.float32), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return sampled.to(torch.uint8)


def upload(values: ArrayLike, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Copy host values to ``device`` without synchronizing."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def per_sample(values: ArrayLike, images: torch.Tensor) -> torch.Tensor:
    """Copy one value per image to the images' device, float32 ``[n, 1, 1, 1]``."""
    return upload(values, images.device).view(-1, 1, 1, 1)


def take(images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Copy ``images[indices]``, ``[n, c, h, w]``, in channels_last layout."""
    return images.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)
