"""RandAugment and TrivialAugment, with a separate operation per image of a batch.

The batch is sorted by operation on the host, and each operation runs once, on its images only. Operations and
magnitudes are torchvision's. To add an operation, write its function in transforms.py and add one line to
OPERATIONS; tests/augment/test_operations.py compares every entry with torchvision. A new entry changes which operations
a seed draws.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rebar.augment import transforms
from rebar.augment.transforms import take, upload
from rebar.loading.rng import BatchPosition, Stream, to_integers

Magnitudes = NDArray[np.float64]


@dataclass(frozen=True)
class MagnitudeRanges:
    """The largest magnitude of each operation. Magnitudes are ``bins`` equally spaced values from 0 to it."""

    shear: float
    translate_x: float
    """Pixels, like ``translate_y``."""
    translate_y: float
    degrees: float
    factor: float
    """Brightness, color, contrast and sharpness change by a factor of 1 plus or minus this."""
    posterize_bits: int
    """The number of bits that posterizing removes."""
    bins: int = 31

    def linear(self, largest: float) -> torch.Tensor:
        """Return float32 ``[bins]`` from 0 to ``largest``."""
        return torch.linspace(0, largest, self.bins)  # float32 as in torchvision, which truncates shifts to pixels

    def magnitudes(self, operations: NDArray[np.int64], bins: NDArray[np.int64]) -> Magnitudes:
        """Return the unsigned magnitude of each operation at its bin, ``[n]``; 0 if it has none."""
        table = torch.stack([operation.magnitudes(self) for operation in OPERATIONS.values()])
        return table.double().numpy()[operations, bins]


def _no_magnitude(ranges: MagnitudeRanges) -> torch.Tensor:
    return torch.zeros(ranges.bins)


def _posterize_bits(ranges: MagnitudeRanges) -> torch.Tensor:
    return 8 - (torch.arange(ranges.bins) / ((ranges.bins - 1) / ranges.posterize_bits)).round()


@dataclass(frozen=True)
class Geometric:
    """An affine operation: the matrices for ``(magnitudes, height, width)``, and the magnitudes per bin."""

    matrices: Callable[[Magnitudes, int, int], transforms.Matrices]
    magnitudes: Callable[[MagnitudeRanges], torch.Tensor]
    signed: bool = True
    """Whether the magnitude is negative half of the time."""


@dataclass(frozen=True)
class Color:
    """A color operation: a function of ``(images, magnitudes)``, and the magnitudes per bin."""

    apply: Callable[[torch.Tensor, Magnitudes], torch.Tensor]
    magnitudes: Callable[[MagnitudeRanges], torch.Tensor] = _no_magnitude
    signed: bool = False
    """Whether the magnitude is negative half of the time."""


OPERATIONS: dict[str, Geometric | Color] = {
    "Identity": Color(lambda i, _: i),
    "ShearX": Geometric(transforms.shear_x, lambda r: r.linear(r.shear)),
    "ShearY": Geometric(transforms.shear_y, lambda r: r.linear(r.shear)),
    "TranslateX": Geometric(transforms.translate_x, lambda r: r.linear(r.translate_x)),
    "TranslateY": Geometric(transforms.translate_y, lambda r: r.linear(r.translate_y)),
    "Rotate": Geometric(transforms.rotate, lambda r: r.linear(r.degrees)),
    "Brightness": Color(lambda i, m: transforms.adjust_brightness(i, 1 + m), lambda r: r.linear(r.factor), signed=True),
    "Color": Color(lambda i, m: transforms.adjust_saturation(i, 1 + m), lambda r: r.linear(r.factor), signed=True),
    "Contrast": Color(lambda i, m: transforms.adjust_contrast(i, 1 + m), lambda r: r.linear(r.factor), signed=True),
    "Sharpness": Color(lambda i, m: transforms.adjust_sharpness(i, 1 + m), lambda r: r.linear(r.factor), signed=True),
    "Posterize": Color(lambda i, m: transforms.posterize(i, m.astype(np.int64)), _posterize_bits),
    "Solarize": Color(lambda i, m: transforms.solarize(i, 255 * m), lambda r: torch.linspace(1, 0, r.bins)),
    "AutoContrast": Color(lambda i, _: transforms.autocontrast(i)),
    "Equalize": Color(lambda i, _: transforms.equalize(i)),
}
"""The operations by name. An operation's number is its position."""
_IDENTITY = 0


def apply_signs(operations: NDArray[np.int64], magnitudes: Magnitudes, draws: NDArray[np.float64]) -> Magnitudes:
    """Negate the magnitudes of signed operations whose draw is below one half."""
    signed = np.array([operation.signed for operation in OPERATIONS.values()])
    return np.where(signed[operations] & (draws < 0.5), -magnitudes, magnitudes)


def apply_operations(images: torch.Tensor, operations: NDArray[np.int64], magnitudes: Magnitudes) -> torch.Tensor:
    """Apply to each uint8 ``[n, 3, h, w]`` image its operation at its magnitude. The result is channels_last."""
    height, width = images.shape[2:]
    # Geometric operations come first, so that one call transforms their images.
    by_kind = sorted(enumerate(OPERATIONS.values()), key=lambda pair: isinstance(pair[1], Color))
    rank = np.argsort([number for number, _ in by_kind])
    order = np.argsort(rank[operations], kind="stable")
    operations, magnitudes = operations[order], magnitudes[order]
    changed = take(images, upload(order, images.device, torch.int64))

    matrices, row = [], 0
    for number, operation in by_kind:
        part = slice(row, row + int((operations == number).sum()))
        row = part.stop
        if isinstance(operation, Geometric):
            matrices.append(operation.matrices(magnitudes[part], height, width))
        elif number != _IDENTITY and part.stop > part.start:
            changed[part] = operation.apply(changed[part], magnitudes[part])
    affine = np.concatenate(matrices)
    if len(affine):
        changed[: len(affine)] = transforms.transform(changed[: len(affine)], affine)
    return take(changed, upload(np.argsort(order), images.device, torch.int64))


def randaugment_ranges(height: int, width: int) -> MagnitudeRanges:
    """Return RandAugment's ranges for images of this size in pixels. Magnitude 30 is the largest."""
    return MagnitudeRanges(0.3, 150 / 331 * width, 150 / 331 * height, degrees=30, factor=0.9, posterize_bits=4)


def rand_augment(
    images: torch.Tensor,
    position: BatchPosition,
    *,
    num_ops: int,
    magnitude: int,
    probability: float = 1.0,
    noise: float = 0.0,
) -> torch.Tensor:
    """Apply ``num_ops`` random operations of ``magnitude`` (0 to 30) to each uint8 ``[n, 3, h, w]`` image.

    Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space", NeurIPS 2020. As in
    timm, ``probability`` is that of applying each operation, and ``noise`` the standard deviation of the magnitude.
    """
    draws = position.uniforms(Stream.AUTO_AUGMENT, 2 * num_ops)
    ranges, applied = randaugment_ranges(*images.shape[2:]), operation_mask(position, num_ops, probability)
    bins = draw_magnitudes(position, num_ops, magnitude, noise)
    for number in range(num_ops):
        operations = np.where(applied[:, number], to_integers(draws[:, 2 * number], len(OPERATIONS)), _IDENTITY)
        magnitudes = ranges.magnitudes(operations, bins[:, number])
        images = apply_operations(images, operations, apply_signs(operations, magnitudes, draws[:, 2 * number + 1]))
    return images


def operation_mask(position: BatchPosition, num_ops: int, probability: float) -> NDArray[np.bool_]:
    """Return whether to apply each operation of each image, bool ``[n, num_ops]``."""
    return position.uniforms(Stream.OPERATION_MASK, num_ops) < probability


def draw_magnitudes(position: BatchPosition, num_ops: int, magnitude: int, noise: float) -> NDArray[np.int64]:
    """Return a magnitude of 0 to 30 for each operation of each image, int64 ``[n, num_ops]``."""
    first, second = np.split(position.uniforms(Stream.MAGNITUDE, 2 * num_ops), 2, axis=1)
    normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)  # Box and Muller, 1958
    return np.clip(np.rint(magnitude + noise * normal), 0, 30).astype(np.int64)


TRIVIALAUGMENT_RANGES = MagnitudeRanges(0.99, 32, 32, degrees=135, factor=0.99, posterize_bits=6)


def trivial_augment(images: torch.Tensor, position: BatchPosition) -> torch.Tensor:
    """Apply one random operation of random magnitude to each uint8 ``[n, 3, h, w]`` image.

    Müller and Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", ICCV 2021 (wide space).
    """
    draws = position.uniforms(Stream.AUTO_AUGMENT, 3)
    operations = to_integers(draws[:, 0], len(OPERATIONS))
    ranges = TRIVIALAUGMENT_RANGES
    magnitudes = ranges.magnitudes(operations, to_integers(draws[:, 2], ranges.bins))
    return apply_operations(images, operations, apply_signs(operations, magnitudes, draws[:, 1]))
