"""``import_torchvision`` succeeds even if torchvision's compiled operators do not match torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from rebar.models.torchvision_compat import import_torchvision

ROOT = Path(__file__).resolve().parent.parent.parent


def test_import_torchvision_works_in_a_new_process() -> None:
    """The two nms schemas must be defined once, by torchvision or by us."""
    code = (
        "from rebar.models.torchvision_compat import import_torchvision; tv = import_torchvision()\n"
        "import torch, torchvision; assert torchvision is tv is import_torchvision()\n"
        "assert 'resnet50' in dir(tv.models); print(torch.ops.torchvision.nms.default._schema.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "torchvision::nms\n"), done.stderr


def test_import_torchvision_raises_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('something else')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RuntimeError, match="something else"):
        import_torchvision()
