"""The fourteen operations of RandAugment and TrivialAugment, each sample of a batch its own.

The host knows which sample gets which, sorts the batch by operation, and runs each operation once, on
its samples only. Cubuk et al., "RandAugment", NeurIPS 2020; operations as in torchvision.

RandAugment: a few operations an image, all at one strength.

Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space", NeurIPS
2020. Operations and strengths are torchvision's.

TrivialAugment (wide): one operation an image, at a random strength; nothing to tune.

Müller and Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", ICCV 2021.
Operations and strengths are torchvision's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rebar.augment import color, geometry
from rebar.augment.rng import BatchPosition, pick, upload
from rebar.loading.rng import Stream

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
SIGNED = frozenset(range(1, 10))
"""Operations (their numbers) whose magnitude is as often negative."""

_MOVES: dict[int, Callable[[NDArray[np.float64], int, int], geometry.Matrices]] = {
    1: geometry.shear_x,
    2: geometry.shear_y,
    3: geometry.translate_x,
    4: geometry.translate_y,
    5: geometry.rotate,
}
_COLOURS: dict[int, Callable[[torch.Tensor, NDArray[np.float64]], torch.Tensor]] = {
    6: lambda images, magnitudes: color.adjust_brightness(images, 1 + magnitudes),
    7: lambda images, magnitudes: color.adjust_saturation(images, 1 + magnitudes),
    8: lambda images, magnitudes: color.adjust_contrast(images, 1 + magnitudes),
    9: lambda images, magnitudes: color.adjust_sharpness(images, 1 + magnitudes),
    10: lambda images, magnitudes: color.posterize(images, magnitudes.astype(np.int64)),
    11: lambda images, magnitudes: color.solarize(images, 255 * magnitudes),
    12: lambda images, _: color.autocontrast(images),
    13: lambda images, _: color.equalize(images),
}


@dataclass(frozen=True)
class Strengths:
    """How strong each operation is at most; the magnitudes lie on ``bins`` equal steps from none to that."""

    shear: float
    translate_x: float
    """Pixels, as ``translate_y``."""
    translate_y: float
    degrees: float
    factor: float
    """Brightness, colour, contrast and sharpness: 1 plus or minus this."""
    lost_bits: int
    bins: int = 31

    def magnitudes(self, operations: NDArray[np.int64], bins: NDArray[np.int64]) -> NDArray[np.float64]:
        """The unsigned magnitude of each operation at its bin, ``[n]``; 0 where it has none."""
        table = torch.zeros(len(OPERATIONS), self.bins)  # float32 as torchvision's, whose whole pixels depend on it
        tops = [self.shear] * 2 + [self.translate_x, self.translate_y, self.degrees] + [self.factor] * 4
        for number, top in enumerate(tops, start=1):
            table[number] = torch.linspace(0, top, self.bins)
        table[10] = 8 - (torch.arange(self.bins) / ((self.bins - 1) / self.lost_bits)).round()
        table[11] = torch.linspace(1, 0, self.bins)
        return table.double().numpy()[operations, bins]


def signed(
    operations: NDArray[np.int64], magnitudes: NDArray[np.float64], draws: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Turn the magnitudes of operations that have two directions around where the draw is below one half."""
    turn = np.isin(operations, list(SIGNED)) & (draws < 0.5)
    return np.where(turn, -magnitudes, magnitudes)


def apply_operations(
    images: torch.Tensor, operations: NDArray[np.int64], magnitudes: NDArray[np.float64]
) -> torch.Tensor:
    """Give each uint8 ``[n, 3, h, w]`` image its operation at its magnitude; channels_last."""
    height, width = images.shape[2:]
    order = np.argsort(operations, kind="stable")
    operations, magnitudes = operations[order], magnitudes[order]
    changed = _take(images, order)

    moves = [(number, operations == number) for number in _MOVES if (operations == number).any()]
    if moves:
        matrices = np.concatenate([_MOVES[number](magnitudes[chosen], height, width) for number, chosen in moves])
        part = _range(operations, min(_MOVES), max(_MOVES))
        changed[part] = geometry.transform(changed[part], matrices)
    for number, apply in _COLOURS.items():
        part = _range(operations, number, number)
        if part.stop > part.start:
            changed[part] = apply(changed[part], magnitudes[part])
    return _take(changed, np.argsort(order))


def _range(sorted_operations: NDArray[np.int64], low: int, high: int) -> slice:
    left, right = np.searchsorted(sorted_operations, [low, high + 1])
    return slice(int(left), int(right))


def _take(images: torch.Tensor, order: NDArray[np.int64]) -> torch.Tensor:
    """A copy in another order, channels_last."""
    chosen = upload(order, images.device, torch.int64)
    return images.permute(0, 2, 3, 1).index_select(0, chosen).permute(0, 3, 1, 2)


_IDENTITY = 0


def strengths(height: int, width: int) -> Strengths:
    """What magnitude 30 means for images of this size, in pixels."""
    return Strengths(0.3, 150 / 331 * width, 150 / 331 * height, degrees=30, factor=0.9, lost_bits=4)


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

    As timm's, each is applied with a ``probability`` only, and its magnitude is normally distributed with the
    standard deviation ``noise``.
    """
    draws = position.uniforms(Stream.AUTO_AUGMENT, 2 * num_ops)
    table, applied = strengths(*images.shape[2:]), _applied(position, num_ops, probability)
    drawn = _drawn_magnitudes(position, num_ops, magnitude, noise)
    for number in range(num_ops):
        operations = np.where(applied[:, number], pick(draws[:, 2 * number], len(OPERATIONS)), _IDENTITY)
        magnitudes = table.magnitudes(operations, drawn[:, number])
        images = apply_operations(images, operations, signed(operations, magnitudes, draws[:, 2 * number + 1]))
    return images


def _applied(position: BatchPosition, num_ops: int, probability: float) -> NDArray[np.bool_]:
    """Whether each operation of each image is applied, ``[n, num_ops]``."""
    return position.uniforms(Stream.SKIPPING, num_ops) < probability


def _drawn_magnitudes(position: BatchPosition, num_ops: int, magnitude: int, noise: float) -> NDArray[np.int64]:
    """A whole magnitude for each operation of each image, ``[n, num_ops]``."""
    first, second = np.split(position.uniforms(Stream.MAGNITUDE, 2 * num_ops), 2, axis=1)
    normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)  # Box and Muller, 1958
    return np.clip(np.rint(magnitude + noise * normal), 0, 30).astype(np.int64)


WIDE = Strengths(0.99, 32, 32, degrees=135, factor=0.99, lost_bits=6)


def trivial_augment(images: torch.Tensor, position: BatchPosition) -> torch.Tensor:
    """Apply a random operation of random strength to each uint8 ``[n, 3, h, w]`` image."""
    draws = position.uniforms(Stream.AUTO_AUGMENT, 3)
    operations = pick(draws[:, 0], len(OPERATIONS))
    magnitudes = WIDE.magnitudes(operations, pick(draws[:, 2], WIDE.bins))
    return apply_operations(images, operations, signed(operations, magnitudes, draws[:, 1]))
