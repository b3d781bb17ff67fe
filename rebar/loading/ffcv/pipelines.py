"""Recognize well-known FFCV pipelines, so that the native backend runs them.

Operations are recognized by class name, without importing FFCV, which takes three seconds and may not be installed.
Their settings are read at the start of each epoch, so a changed ``decoder.output_size`` takes effect at the next epoch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rebar.beton.format import FIELD_DESCRIPTOR, HEADER, TYPE_IMAGE, TYPE_INT, VERSION, choose_field, field_names
from rebar.beton.reader import BetonFile
from rebar.loading.crops import CenterCrop, Cropper, RandomResizedCrop
from rebar.loading.prefetch import Batch

TensorOp = Callable[[torch.Tensor], torch.Tensor]


def field_types(path: Path) -> dict[str, int]:
    """Return the type id of every field, in file order. Raises BetonError if the file is not a beton."""
    try:
        with path.open("rb") as file:
            (header,) = np.fromfile(file, HEADER, 1)
            descriptors = np.fromfile(file, FIELD_DESCRIPTOR, int(header["num_fields"]))
        if header["version"] != VERSION:
            raise ValueError(f"version {header['version']}")
    except (OSError, ValueError):
        BetonFile.open(path)  # raises the BetonError that explains the problem
        raise
    return dict(zip(field_names(descriptors), descriptors["type_id"].tolist(), strict=True))


def image_and_label_fields(types: Mapping[str, int]) -> tuple[str | None, str | None]:
    """Return the fields that BetonFile reads: those named "image" and "label", else the first of each type."""
    names, type_ids = list(types), list(types.values())
    chosen = (choose_field(names, type_ids, *wanted) for wanted in ((TYPE_IMAGE, "image"), (TYPE_INT, "label")))
    image, label = (None if number is None else names[number] for number in chosen)
    return image, label


@dataclass(frozen=True)
class RecognizedPipelines:
    """The :class:`rebar.loading.backend.BatchSpec` of recognized pipelines.

    ``outputs`` has one pair per element of the loader's output: whether it is the images, and its operations after
    decoding.
    """

    decoder: Any
    flip_probability: float
    outputs: Sequence[tuple[bool, Sequence[TensorOp]]]
    device: torch.device | None
    pipelines: Mapping[Any, Any]
    types: Mapping[str, int]

    def __reduce__(self) -> tuple[Any, ...]:
        return recognize, (self.pipelines, self.types)  # the operations in ``outputs`` cannot be pickled

    def cropper(self) -> Cropper:
        """Return the cropper with the decoder's current settings."""
        if _kind(self.decoder) in ("RandomResizedCropRGBImageDecoder", "RandomResizedCrop"):
            (low_scale, high_scale), (low_ratio, high_ratio) = self.decoder.scale, self.decoder.ratio
            return RandomResizedCrop((low_scale, high_scale), (low_ratio, high_ratio), self.flip_probability)
        return CenterCrop(self.decoder.ratio, self.flip_probability)

    def size(self, resolution: int | None) -> tuple[int, int]:
        """Return (height, width) in pixels: the decoder's current output size, unless a resolution is given."""
        height, width = self.decoder.output_size if resolution is None else (resolution, resolution)
        return int(height), int(width)

    def finish(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Apply the operations after decoding."""
        finished = []
        for is_image, operations in self.outputs:
            value = batch.images if is_image else batch.labels
            for operation in operations:
                value = operation(value)
            finished.append(value)
        return tuple(finished)


_DECODERS = ("RandomResizedCropRGBImageDecoder", "CenterCropRGBImageDecoder", "RandomResizedCrop", "CenterCrop")


def _kind(operation: Any) -> str:
    """Return the class name of an operation of FFCV or of rebar.loading.ffcv.operations, "" for any other object."""
    kind = type(operation)
    known = kind.__module__.startswith("ffcv.") or kind.__module__ == "rebar.loading.ffcv.operations"
    return kind.__name__ if known else ""


def recognize(pipelines: Mapping[Any, Any], types: Mapping[str, int]) -> RecognizedPipelines | None:
    """Return the specification of these pipelines for a file with fields of ``types``; None if FFCV must run them."""
    image, label = image_and_label_fields(types)
    fields = [name for name in types if pipelines.get(name, ()) is not None]
    if image not in fields or not set(fields) <= {image, label} or not set(pipelines) <= set(types):
        return None
    image_pipeline = _parse_image_pipeline(pipelines.get(image))
    labels = _parse_label_pipeline(pipelines.get(label, ())) if label in fields else ([], None)
    if image_pipeline is None or labels is None:
        return None
    decoder, flip_probability, (operations, device) = image_pipeline
    outputs = [(name == image, operations if name == image else labels[0]) for name in fields]
    return RecognizedPipelines(decoder, flip_probability, outputs, device or labels[1], pipelines, types)


def _parse_image_pipeline(
    pipeline: Any,
) -> tuple[Any, float, tuple[list[TensorOp], torch.device | None]] | None:
    if not isinstance(pipeline, Sequence) or not pipeline or _kind(pipeline[0]) not in _DECODERS:
        return None
    decoder, rest = pipeline[0], list(pipeline[1:])
    flip_probability = float(getattr(decoder, "flip_prob", 0.0))
    if rest and _kind(rest[0]) == "RandomHorizontalFlip":
        second = float(rest.pop(0).flip_prob)
        flip_probability = flip_probability * (1 - second) + second * (1 - flip_probability)
    operations = _parse_operations(rest, is_image=True)
    return None if operations is None else (decoder, flip_probability, operations)


def _parse_label_pipeline(pipeline: Any) -> tuple[list[TensorOp], torch.device | None] | None:
    if not isinstance(pipeline, Sequence):
        return None
    rest = list(pipeline)
    if rest and _kind(rest[0]) == "IntDecoder":
        rest.pop(0)
    operations = _parse_operations(rest, is_image=False)
    # FFCV's labels have shape [n, 1] until they are squeezed.
    return None if operations is None else ([lambda labels: labels.view(-1, 1), *operations[0]], operations[1])


def _parse_operations(pipeline: list[Any], *, is_image: bool) -> tuple[list[TensorOp], torch.device | None] | None:
    """Return the operations after the decoder as functions of tensors, and the device they move to."""
    operations: list[TensorOp] = []
    device: torch.device | None = None
    channel_axis = -1
    for operation in pipeline:
        kind = _kind(operation)
        if kind == "ToTensor":
            continue
        if kind == "ToDevice":
            device = torch.device(operation.device)
            operations.append(_to_device(device, operation.non_blocking))
        elif kind == "ToTorchImage" and is_image:
            channel_axis = 1
            operations.append(_to_torch_image(operation.channels_last))
        elif kind == "NormalizeImage" and is_image:
            operations.append(_normalize(operation, channel_axis))
        elif kind == "Squeeze" and not is_image:
            operations.append(lambda labels: labels.view(-1))
        elif kind == "Convert" and isinstance(operation.target_dtype, torch.dtype):
            operations.append(_convert(operation.target_dtype))
        elif isinstance(operation, torch.nn.Module):
            operations.append(operation)
        else:
            return None
    return operations, device


def _to_device(device: torch.device, non_blocking: bool) -> TensorOp:
    return lambda tensor: tensor.to(device, non_blocking=non_blocking)


def _convert(dtype: torch.dtype) -> TensorOp:
    return lambda tensor: tensor.to(dtype)


def _to_torch_image(channels_last: bool) -> TensorOp:
    if channels_last:
        return lambda images: images.permute(0, 3, 1, 2)
    return lambda images: images.permute(0, 3, 1, 2).contiguous()


def _normalize(operation: Any, channel_axis: int) -> TensorOp:
    """Return FFCV's normalization, a table of 256 values per channel, as slope and offset of the line through them."""
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
