"""A trained model as ONNX, for other runtimes.

The graph takes pictures as training does: float32, N × 3 × height × width, channels RGB, normalised with the mean and
deviation that the metadata's key ``rebar`` names (in levels of 0 to 255). N, height and width are free.
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

from rebar.errors import RebarError
from rebar.replacing import replacing
from rebar.training.model import build_model

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
    with replacing(path) as (file,):
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
