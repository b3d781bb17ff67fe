"""FFCV is optional: the native path neither imports nor needs it, and its absence is reported with a fix."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rebar.beton import BetonFile
from rebar.errors import RebarError
from rebar.loading import Loader, RandomResizedCrop
from rebar.loading.ffcv.graph import ffcv_compiler
from rebar.loading.ffcv.pipelines import recognize

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def no_ffcv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every import of FFCV fail, as if it were not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "ffcv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ffcv", None)
    monkeypatch.delitem(sys.modules, "rebar.loading.ffcv.operations", raising=False)
    ffcv_compiler.cache_clear()


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("blocked", [False, True], ids=["installed", "not installed"])
def test_native_loader_imports_neither_ffcv_nor_torchvision(blocked: bool, textures: BetonFile) -> None:
    block = "sys.modules['ffcv'] = None\n" if blocked else ""
    printed = run_python(
        f"import sys\n{block}"
        "from rebar.loading import *\n"
        "import rebar.loading.ffcv.graph, rebar.loading.ffcv.pipelines\n"
        f"loader = Loader({str(textures.path)!r}, 4, 2, cropper=RandomResizedCrop(), resolution=32)\n"
        "print([len(batch.labels) for batch in loader])\n"
        "print(sorted(name for name in ('ffcv', 'torchvision') if sys.modules.get(name)))\n"
    )
    assert printed == "[4, 4, 4]\n[]\n"


@pytest.mark.usefixtures("no_ffcv")
def test_loader_with_a_cropper_works_without_ffcv(textures: BetonFile) -> None:
    loader = Loader(textures.path, 4, 2, cropper=RandomResizedCrop(), resolution=16)
    assert [tuple(batch.images.shape) for batch in loader] == [(4, 16, 16, 3)] * 3


@pytest.mark.usefixtures("no_ffcv")
def test_loader_with_ffcv_pipelines_names_the_missing_package(textures: BetonFile) -> None:
    with pytest.raises(RebarError) as error:
        Loader(textures.path, 4, 2, pipelines={"image": [object()]})
    assert error.value.code == "ffcv-not-installed"
    assert "scripts/setup.sh" in str(error.value)


@pytest.mark.usefixtures("no_ffcv")
def test_importing_the_ffcv_operations_names_the_missing_package() -> None:
    with pytest.raises(RebarError) as error:
        import rebar.loading.ffcv.operations  # noqa: F401
    assert error.value.code == "ffcv-not-installed"


def stand_in(name: str, **attributes: object) -> object:
    """Return an object whose class has the name and module of an FFCV operation."""
    operation = type(name, (), {"__module__": "ffcv.fields.rgb_image"})()
    vars(operation).update(attributes)
    return operation


@pytest.mark.usefixtures("no_ffcv")
def test_recognize_identifies_ffcv_operations_by_class_name() -> None:
    decoder = stand_in("RandomResizedCropRGBImageDecoder", output_size=(8, 6), scale=(0.1, 1), ratio=(0.5, 2))
    flip = stand_in("RandomHorizontalFlip", flip_prob=0.25)
    found = recognize({"image": [decoder, flip, stand_in("ToTensor")]}, {"image": 2, "label": 1})
    assert found is not None
    assert found.cropper() == RandomResizedCrop((0.1, 1), (0.5, 2), 0.25)
    assert found.size(None) == (8, 6)
    assert recognize({"image": [decoder, stand_in("Cutout")]}, {"image": 2, "label": 1}) is None
