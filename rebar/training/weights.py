"""Read the weights of torchvision, timm, ffcv-imagenet or Lightning, and export weights: ``.pth``, safetensors or ONNX.

An ONNX model takes RGB float32 images ``[n, 3, height, width]`` and returns logits; n, height and width are dynamic.
The images must be normalized with the mean and standard deviation (in levels of 0 to 255) that its metadata contains
under the key ``rebar``.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.loading.prefetch import IMAGENET_MEAN, IMAGENET_STD
from rebar.models.build import build_model
from rebar.optim.averaging import weights_to_evaluate
from rebar.storage.files import atomic_write
from rebar.training.checkpoint import FORMAT, plain_names, torch_save

_EMA_KEYS = ("model_ema", "state_dict_ema")
_WRAPPERS = ("model", "state_dict")
_BLUR_FILTER = ".blur_filter"


@dataclass(frozen=True)
class ImportedWeights:
    """A state_dict with torchvision's parameter names, and the settings of its model that the file contains.

    - arch: the name of the architecture; empty if unknown.
    - use_blurpool: whether the model has BlurPool.
    - mean, std: channel statistics for pixel values scaled to [0, 1]; default ImageNet's.
    """

    tensors: dict[str, torch.Tensor]
    arch: str = ""
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
        metadata = json.loads((file.metadata() or {}).get("rebar", "{}"))  # written by export_weights
    return _with_metadata(plain_names(load_file(path)), metadata)


def _with_metadata(tensors: dict[str, torch.Tensor], metadata: Mapping[str, Any]) -> ImportedWeights:
    """Return weights that Rebar wrote. ``metadata`` is that of :func:`rebar.training.weights.export_metadata`."""
    mean, std = metadata.get("mean", IMAGENET_MEAN), metadata.get("std", IMAGENET_STD)
    arch, use_blurpool = str(metadata.get("arch", "")), bool(metadata.get("use_blurpool"))
    if ":" in arch:
        arch = ""  # a callable to import: a file of weights does not select code, --arch does
    return ImportedWeights(tensors, arch=arch, use_blurpool=use_blurpool, mean=mean, std=std)


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
    return RebarError(f"{path}: {message}. Pass a .pth or .safetensors file of weights.", code="weights-invalid")


OPSET = 18
SUFFIXES = {"torchvision": ".pth", "safetensors": ".safetensors", "onnx": ".onnx"}
_ONNX_PACKAGES = ("onnx", "onnxscript")
_TRACING_RESOLUTION = 64  # px; the graph does not depend on it


def export_suffixes(formats: str) -> list[str]:
    """Return the file suffixes for a value of ``checkpoint.export``: a format, 'both', 'all' or 'none'."""
    names = {"both": ["torchvision", "safetensors"], "all": list(SUFFIXES), "none": []}.get(formats, [formats])
    return [SUFFIXES[name] for name in names]


def check_export_format(suffix: str) -> None:
    """Raise RebarError for an unknown suffix, or if a package that the export needs is not installed."""
    if suffix not in (*SUFFIXES.values(), ".pt"):
        raise RebarError(
            f"export: unknown suffix '{suffix}'. Use .pth (torchvision's state_dict), .safetensors or .onnx.",
            code="export-unknown-format",
        )
    if suffix != SUFFIXES["onnx"]:
        return
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RebarError(
            f"export: ONNX needs {' and '.join(missing)}. Run 'pip install {' '.join(missing)}'.",
            code="export-package-missing",
        )


def export_metadata(content: Mapping[str, Any], *, use_blurpool: bool) -> dict[str, object]:
    """Return the metadata of exported weights. ``content`` is a checkpoint, or the attributes of a TrainState."""
    return {
        "arch": content["arch"],
        "num_classes": content["num_classes"],
        "class_names": content["class_names"],
        "use_blurpool": use_blurpool,
        "mean": list(content["mean"]),
        "std": list(content["std"]),
        "metrics": content["last_metrics"],
    }


def export_weights(path: Path, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, object]) -> None:
    """Write a state_dict with torchvision's parameter names, in the format of the suffix.

    - ``.pth`` (or ``.pt``): ``model.load_state_dict(torch.load(path))``.
    - ``.safetensors``: ``safetensors.torch.load_file(path)``, with ``metadata`` as JSON under the key ``rebar``.
    - ``.onnx``: a model with the same metadata, which must contain ``arch`` and ``num_classes``.

    Raises RebarError for another suffix, a missing package, an architecture that cannot be exported, or a full disk.
    """
    check_export_format(path.suffix)
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if path.suffix == ".safetensors":
        content = _to_safetensors(plain, metadata)
    elif path.suffix in (".pth", ".pt"):
        if metadata.get("use_blurpool"):
            warn(f"{path}: the model uses BlurPool; torchvision's model without it gives other outputs")
        with atomic_write(path) as (file,):
            torch_save(plain, file)
        return
    else:
        content = _to_onnx(plain, metadata)
    with atomic_write(path) as (file,):
        file.write(content)


def _to_safetensors(weights: Mapping[str, torch.Tensor], metadata: Mapping[str, object]) -> bytes:
    from safetensors.torch import save

    # other readers require "format"
    return _sort_metadata(save(dict(weights), metadata={"format": "pt", "rebar": json.dumps(dict(metadata))}))


def _sort_metadata(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, so that equal weights give equal files.

    The package writes it in random order. The header is JSON, preceded by its size in 8 bytes and padded with spaces
    (https://github.com/huggingface/safetensors).
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _to_onnx(weights: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> bytes:
    arch, num_classes = metadata["arch"], metadata["num_classes"]
    model = build_model(arch, num_classes=num_classes, use_blurpool=bool(metadata.get("use_blurpool")))
    model.load_state_dict(dict(weights))
    proto = _trace(model.eval(), arch)
    entry = proto.metadata_props.add()
    entry.key, entry.value = "rebar", json.dumps(dict(metadata))
    content: bytes = proto.SerializeToString()
    return content


def _trace(model: torch.nn.Module, arch: str) -> Any:
    dynamic = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet_loggers():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model,
                (torch.zeros(2, 3, _TRACING_RESOLUTION, _TRACING_RESOLUTION),),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises exceptions of many types
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RebarError(
                f"export: torch cannot export a {arch} to ONNX: {reason}. Export .safetensors instead.",
                code="export-onnx-failed",
            ) from None
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Silence the exporter's packages, which log progress as warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
