"""Read weights that other programs wrote: torchvision, timm, ffcv-imagenet, Lightning, or a plain state_dict."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.loading.prefetch import IMAGENET_MEAN, IMAGENET_STD
from rebar.optim.averaging import weights_to_evaluate
from rebar.training.checkpoint import FORMAT, plain_names

_EMA_KEYS = ("model_ema", "state_dict_ema")
_WRAPPERS = ("model", "state_dict")
_BLUR_FILTER = ".blur_filter"


@dataclass(frozen=True)
class ImportedWeights:
    """A state_dict with torchvision's parameter names, and the settings of its model that the file contains.

    - use_blurpool: whether the model has BlurPool.
    - mean, std: channel statistics for pixel values scaled to [0, 1]; default ImageNet's.
    """

    tensors: dict[str, torch.Tensor]
    use_blurpool: bool = False
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


class _Ignored:
    """An object of the checkpoint that is neither a tensor nor a plain value. Its class is not imported."""

    def __new__(cls, *_: Any, **__: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _IgnoredDict:
    """As :class:`_Ignored`, for subclasses of dict: torch fills in exact dicts only."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return {}


def read_weights(path: Path) -> ImportedWeights:
    """Read the weights of a ``.safetensors`` file or of a file that ``torch.save`` wrote, onto the CPU.

    Such a file contains a state_dict, or a dict with one under ``model`` (torchvision's reference scripts) or
    ``state_dict`` (timm, Lightning). The moving average is preferred, with a notice, if the file has one. Prefixes of
    DDP, torch.compile and Lightning, and ffcv-imagenet's names for BlurPool are translated. Only tensors and plain
    values are unpickled, never code. Raises RebarError if the file is missing or contains no state_dict.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        content = _unpickle(path)
    except FileNotFoundError:
        raise RebarError(f"{path}: file not found. Check the path.", code="weights-not-found") from None
    except Exception as error:  # a damaged file may raise any exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _invalid(path, f"not readable: {reason}") from None
    tensors = _find_state_dict(content, path)
    if tensors is None:
        is_object = isinstance(content, _Ignored)
        raise _invalid(path, "a pickled object, not its state_dict" if is_object else "no state_dict found")
    imported = _translate_blurpool(_without_lightning_prefix(plain_names(tensors)))
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return _with_metadata(imported.tensors, {**content, "use_blurpool": content["config"]["training.use_blurpool"]})
    return imported


def _read_safetensors(path: Path) -> ImportedWeights:
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {}).get("rebar", "{}"))  # of export_weights
    return _with_metadata(plain_names(load_file(path)), metadata)


def _with_metadata(tensors: dict[str, torch.Tensor], metadata: Mapping[str, Any]) -> ImportedWeights:
    """Return weights that Rebar wrote. ``metadata`` is that of :func:`rebar.training.export.export_metadata`."""
    mean, std = metadata.get("mean", IMAGENET_MEAN), metadata.get("std", IMAGENET_STD)
    return ImportedWeights(tensors, use_blurpool=bool(metadata.get("use_blurpool")), mean=mean, std=std)


def _unpickle(path: Path) -> Any:
    """Unpickle tensors and plain values. Other objects, such as an ``argparse.Namespace``, become placeholders."""
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    placeholders: list[Any] = [(_IgnoredDict if name.lower().endswith("dict") else _Ignored, name) for name in unknown]
    if not placeholders:  # a file of torch before 1.6
        placeholders = [(_Ignored, "argparse.Namespace")]
    with torch.serialization.safe_globals(placeholders):
        return torch.load(path, map_location="cpu", weights_only=True)


def _find_state_dict(content: Any, path: Path) -> dict[str, torch.Tensor] | None:
    if not isinstance(content, dict):
        return None
    if content.get("format") == FORMAT:
        return weights_to_evaluate(content)
    for key in (*_EMA_KEYS, *_WRAPPERS):
        if isinstance(content.get(key), dict):
            found = _find_state_dict(content[key], path)
            if found and key in _EMA_KEYS:
                warn(f"{path}: evaluating the moving average of the weights ({key})")
            if found:
                return found
    weights = {name: value for name, value in content.items() if name != "n_averaged"}  # AveragedModel's counter
    return weights if weights and all(isinstance(value, torch.Tensor) for value in weights.values()) else None


def _without_lightning_prefix(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a LightningModule's attribute ``model``, without metrics and losses next to it."""
    inner = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    return inner or dict(weights)


def _translate_blurpool(weights: Mapping[str, torch.Tensor]) -> ImportedWeights:
    """Rename ffcv-imagenet's ``layer.conv.weight`` to ``layer.weight`` for each layer with a ``layer.blur_filter``."""
    blurred = [name.removesuffix(_BLUR_FILTER) for name in weights if name.endswith(_BLUR_FILTER)]
    tensors = {name: value for name, value in weights.items() if not name.endswith(_BLUR_FILTER)}
    for layer in blurred:
        for parameter in ("weight", "bias"):
            if f"{layer}.conv.{parameter}" in tensors:
                tensors[f"{layer}.{parameter}"] = tensors.pop(f"{layer}.conv.{parameter}")
    return ImportedWeights(tensors, use_blurpool=bool(blurred))


def _invalid(path: Path, message: str) -> RebarError:
    return RebarError(f"{path}: {message}. Give a .pth or .safetensors file of weights.", code="weights-invalid")
