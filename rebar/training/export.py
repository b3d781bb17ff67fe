"""A trained model as ONNX, for other runtimes.

The graph takes images as training does: float32, N × 3 × height × width, channels RGB, normalised with the mean and
deviation that the metadata's key ``rebar`` names (in levels of 0 to 255). N, height and width are free.

The weights alone, for others to load: a torchvision state_dict, safetensors, or a whole model as ONNX.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.models.resnets import build_model
from rebar.storage.atomic_write import atomic_write
from rebar.training.checkpoint import plain_names

OPSET = 18
_PACKAGES = ("onnx", "onnxscript")
_TRACED_AT = 64  # pixels; any will do


def check_onnx_installed() -> None:
    """Raise RebarError where a package is missing, so that it is known before the training."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RebarError(f"exporting ONNX takes {' and '.join(missing)}: pip install {' '.join(missing)}")


def write_onnx(path: Path, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write a classifier (``facts`` names ``arch``, ``num_classes`` and ``use_blurpool``) with its softmax left out.

    Raises RebarError where a package is missing, or where the architecture cannot be exported.
    """
    check_onnx_installed()
    model = build_model(facts["arch"], num_classes=facts["num_classes"], use_blurpool=bool(facts.get("use_blurpool")))
    model.load_state_dict(dict(weights))
    proto = _traced(model.eval(), facts["arch"])
    entry = proto.metadata_props.add()
    entry.key, entry.value = "rebar", json.dumps(dict(facts))
    with atomic_write(path) as (file,):
        file.write(proto.SerializeToString())


def _traced(model: torch.nn.Module, arch: str) -> Any:
    free = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet_loggers():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model,
                (torch.zeros(2, 3, _TRACED_AT, _TRACED_AT),),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: free, 2: free, 3: free},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter's own, of many kinds
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RebarError(f"a {arch} cannot be exported as ONNX: {reason}") from None
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _quiet_loggers() -> Any:
    """The exporter's packages tell their steps at the level of warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


SUFFIXES = {"torchvision": ".pth", "safetensors": ".safetensors", "onnx": ".onnx"}


def export_weights(path: Path, weights: Mapping[str, torch.Tensor], facts: Mapping[str, object]) -> None:
    """Write a state_dict under torchvision's names; the suffix says in which form.

    ``.pth`` is read by ``model.load_state_dict(torch.load(path))``, ``.safetensors`` by
    ``safetensors.torch.load_file(path)`` and holds ``facts`` as JSON under the metadata's key ``rebar``, as does
    ``.onnx``, for which ``facts`` must name ``arch`` and ``num_classes``. Raises RebarError for another suffix, where a
    package is missing, or where the disk is full.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if path.suffix == ".safetensors":
        content = _as_safetensors(plain, facts)
        with atomic_write(path) as (file,):
            file.write(content)
    elif path.suffix in (".pth", ".pt"):
        if facts.get("use_blurpool"):
            warn(f"{path}: trained with BlurPool, which a plain torchvision model lacks: its results will differ")
        with atomic_write(path) as (file,):
            torch.save(plain, file)
    elif path.suffix == ".onnx":
        write_onnx(path, plain, facts)
    else:
        raise RebarError(f"{path}: exported weights end in .pth (torchvision's state_dict), .safetensors or .onnx")


def export_metadata(content: Mapping[str, Any], *, use_blurpool: bool) -> dict[str, object]:
    """What somebody who loads the exported weights has to know, of a checkpoint or a run's state, named alike."""
    return {
        "arch": content["arch"],
        "num_classes": content["num_classes"],
        "class_names": content["class_names"],
        "use_blurpool": use_blurpool,
        "mean": list(content["mean"]),
        "std": list(content["std"]),
        "metrics": content["last_metrics"],
    }


def _as_safetensors(weights: Mapping[str, torch.Tensor], facts: Mapping[str, object]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError:
        raise RebarError("safetensors is not installed: 'pip install safetensors'") from None
    # "format" is what other readers ask for
    return _in_order(save(dict(weights), metadata={"format": "pt", "rebar": json.dumps(dict(facts))}))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in order, which the package shuffles: equal weights give equal files.

    The header is JSON behind its size in 8 bytes, padded with spaces (https://github.com/huggingface/safetensors).
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state_dict of a ``.pth`` or ``.safetensors`` file, under the bare model's names.

    Takes what wraps it in torchvision's reference script and ours ("model"), and in timm's ("state_dict").
    Raises RebarError for a file that is missing or holds no weights.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return plain_names(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RebarError(f"{path} does not exist") from None
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RebarError(f"{path} holds no weights that can be read: {reason}") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise RebarError(f"{path} holds no state_dict")
    return plain_names(content)


def export_suffixes(wanted: str) -> list[str]:
    """The suffixes that 'none', the name of one, 'both' (of the first two) or 'all' mean."""
    names = {"both": ["torchvision", "safetensors"], "all": list(SUFFIXES), "none": []}.get(wanted, [wanted])
    return [SUFFIXES[name] for name in names]


def check_can_export(wanted: str) -> None:
    """Raise RebarError where what is to be written at the end takes a package that is missing."""
    if ".onnx" in export_suffixes(wanted):
        check_onnx_installed()
