"""``import_torchvision`` succeeds even if torchvision's compiled operators do not match torch."""

import sys
from pathlib import Path

import pytest
import torch

from rebar.models.torchvision_compat import import_torchvision


def test_import_torchvision_may_be_called_again() -> None:
    """The two nms schemas must be defined once, by torchvision or by us."""
    torchvision = import_torchvision()
    assert import_torchvision() is torchvision is sys.modules["torchvision"]
    assert "resnet50" in dir(torchvision.models)
    assert torch.ops.torchvision.nms.default.name() == "torchvision::nms"


def test_import_torchvision_raises_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('something else')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RuntimeError, match="something else"):
        import_torchvision()
