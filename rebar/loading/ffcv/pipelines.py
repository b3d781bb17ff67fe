"""FFCV pipelines that run on our own path: recognised, not executed.

FFCV's operations are told by their names, so that nothing here imports FFCV (three seconds, and perhaps
not installed). Their settings are read when an epoch begins: a changed ``decoder.output_size`` counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rebar.loading.batch_source import Batch, image_and_label
from rebar.loading.crops import CenterCrop, Cropper, RandomResizedCrop

Step = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recognized:
    """Pipelines of images and labels; a :class:`rebar.loading.batch_source.Plan`.

    ``outputs`` says for every element of a batch whether it is the images, and the steps after decoding.
    """

    decoder: Any
    flip_probability: float
    outputs: Sequence[tuple[bool, Sequence[Step]]]
    device: torch.device | None
    """Where a pipeline moves its tensors to."""

    def cropper(self) -> Cropper:
        """What the decoder and the flip choose, as they are set now."""
        if _kind(self.decoder) in ("RandomResizedCropRGBImageDecoder", "RandomResizedCrop"):
            (low_scale, high_scale), (low_ratio, high_ratio) = self.decoder.scale, self.decoder.ratio
            return RandomResizedCrop((low_scale, high_scale), (low_ratio, high_ratio), self.flip_probability)
        return CenterCrop(self.decoder.ratio, self.flip_probability)

    def size(self, resolution: int | None) -> tuple[int, int]:
        """(height, width) in pixels: the decoder's, unless a resolution is asked for."""
        height, width = self.decoder.output_size if resolution is None else (resolution, resolution)
        return int(height), int(width)

    def finish(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Apply what comes after decoding."""
        finished = []
        for is_image, steps in self.outputs:
            value = batch.images if is_image else batch.labels
            for step in steps:
                value = step(value)
            finished.append(value)
        return tuple(finished)


_DECODERS = ("RandomResizedCropRGBImageDecoder", "CenterCropRGBImageDecoder", "RandomResizedCrop", "CenterCrop")


def _kind(operation: Any) -> str:
    """The name of an FFCV operation's class, or of ours for FFCV; empty for anything else, subclasses too."""
    kind = type(operation)
    known = kind.__module__.startswith("ffcv.") or kind.__module__ == "rebar.loading.ffcv.operations"
    return kind.__name__ if known else ""


def recognize(pipelines: Mapping[Any, Any], types: Mapping[str, int]) -> Recognized | None:
    """What these pipelines mean on a file with fields of ``types``; None where FFCV itself must run them."""
    image, label = image_and_label(types)
    fields = [name for name in types if pipelines.get(name, ()) is not None]
    if image not in fields or not set(fields) <= {image, label} or not set(pipelines) <= set(types):
        return None
    recognized_image = _read_image_pipeline(pipelines.get(image))
    labels = _read_label_pipeline(pipelines.get(label, ())) if label in fields else ([], None)
    if recognized_image is None or labels is None:
        return None
    decoder, flip_probability, (steps, device) = recognized_image
    outputs = [(name == image, steps if name == image else labels[0]) for name in fields]
    return Recognized(decoder, flip_probability, outputs, device or labels[1])


def _read_image_pipeline(
    operations: Any,
) -> tuple[Any, float, tuple[list[Step], torch.device | None]] | None:
    if not isinstance(operations, Sequence) or not operations or _kind(operations[0]) not in _DECODERS:
        return None
    decoder, rest = operations[0], list(operations[1:])
    flip_probability = float(getattr(decoder, "flip_prob", 0.0))
    if rest and _kind(rest[0]) == "RandomHorizontalFlip":
        again = float(rest.pop(0).flip_prob)
        flip_probability = flip_probability * (1 - again) + again * (1 - flip_probability)
    steps = _read_steps(rest, channels=True)
    return None if steps is None else (decoder, flip_probability, steps)


def _read_label_pipeline(operations: Any) -> tuple[list[Step], torch.device | None] | None:
    if not isinstance(operations, Sequence):
        return None
    rest = list(operations)
    if rest and _kind(rest[0]) == "IntDecoder":
        rest.pop(0)
    steps = _read_steps(rest, channels=False)
    # FFCV's labels are a column until they are squeezed.
    return None if steps is None else ([lambda labels: labels.view(-1, 1), *steps[0]], steps[1])


def _read_steps(operations: list[Any], *, channels: bool) -> tuple[list[Step], torch.device | None] | None:
    """The operations after the decoder as functions of tensors, and the device they move to."""
    steps: list[Step] = []
    device: torch.device | None = None
    channel_axis = -1
    for operation in operations:
        kind = _kind(operation)
        if kind == "ToTensor":
            continue
        if kind == "ToDevice":
            device = torch.device(operation.device)
            steps.append(_to_device(device, operation.non_blocking))
        elif kind == "ToTorchImage" and channels:
            channel_axis = 1
            steps.append(_to_torch_image(operation.channels_last))
        elif kind == "NormalizeImage" and channels:
            steps.append(_normalize(operation, channel_axis))
        elif kind == "Squeeze" and not channels:
            steps.append(lambda labels: labels.view(-1))
        elif kind == "Convert" and isinstance(operation.target_dtype, torch.dtype):
            steps.append(_convert(operation.target_dtype))
        elif isinstance(operation, torch.nn.Module):
            steps.append(operation)
        else:
            return None
    return steps, device


def _to_device(device: torch.device, non_blocking: bool) -> Step:
    return lambda tensor: tensor.to(device, non_blocking=non_blocking)


def _convert(dtype: torch.dtype) -> Step:
    return lambda tensor: tensor.to(dtype)


def _to_torch_image(channels_last: bool) -> Step:
    if channels_last:
        return lambda images: images.permute(0, 3, 1, 2)
    return lambda images: images.permute(0, 3, 1, 2).contiguous()


def _normalize(operation: Any, channel_axis: int) -> Step:
    """FFCV keeps a table of 256 values a channel, which is a straight line: its slope and offset say it all."""
    table = np.asarray(operation.lookup_table)
    if table.dtype == np.int16 and operation.original_dtype == np.float16:
        table = table.view(np.float16)
    slope, offset = np.polyfit(np.arange(256), table.reshape(256, 3).astype(np.float64), 1)
    shape = (1, 3, 1, 1) if channel_axis == 1 else (1, 1, 1, 3)
    slope_tensor, offset_tensor = (torch.tensor(line, dtype=torch.float32).view(shape) for line in (slope, offset))
    dtype = torch.from_numpy(np.zeros(0, operation.original_dtype)).dtype

    def normalize(images: torch.Tensor) -> torch.Tensor:
        scale, shift = slope_tensor.to(images.device), offset_tensor.to(images.device)
        return torch.addcmul(shift, images.to(torch.float32), scale).to(dtype)

    return normalize
