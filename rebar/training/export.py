"""The weights alone, for others to load: a torchvision state_dict, or safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from rebar.errors import RebarError
from rebar.replacing import replacing

SUFFIXES = {"torchvision": ".pth", "safetensors": ".safetensors"}


def export_weights(path: Path, weights: Mapping[str, torch.Tensor], facts: Mapping[str, object]) -> None:
    """Write a state_dict under torchvision's names; the suffix says in which form.

    ``.pth`` is read by ``model.load_state_dict(torch.load(path))``, ``.safetensors`` by
    ``safetensors.torch.load_file(path)`` and holds ``facts`` as JSON under the metadata's key ``rebar``.
    Raises RebarError for another suffix, where safetensors is missing, or where the disk is full.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if path.suffix == ".safetensors":
        content = _as_safetensors(plain, facts)
        with replacing(path) as (file,):
            file.write(content)
    elif path.suffix in (".pth", ".pt"):
        with replacing(path) as (file,):
            torch.save(plain, file)
    else:
        raise RebarError(f"{path}: exported weights end in .pth (torchvision's state_dict) or .safetensors")


def _as_safetensors(weights: Mapping[str, torch.Tensor], facts: Mapping[str, object]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError:
        raise RebarError("safetensors is not installed: 'pip install safetensors'") from None
    # "format" is what other readers ask for
    content: bytes = save(dict(weights), metadata={"format": "pt", "rebar": json.dumps(dict(facts))})
    return content


def forms(wanted: str) -> list[str]:
    """The suffixes that 'none', 'safetensors', 'torchvision' or 'both' mean."""
    return [suffix for name, suffix in SUFFIXES.items() if wanted in (name, "both")]
