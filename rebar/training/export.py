"""Export weights as a torchvision state_dict (``.pth``), safetensors or ONNX.

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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.models.build import build_model
from rebar.storage.files import atomic_write
from rebar.training.checkpoint import torch_save

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
