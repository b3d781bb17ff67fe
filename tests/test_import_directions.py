"""Each package imports only itself and the packages below it, and no module is too long or too short."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}

BASE = {"errors", "cli", "storage", "config"}
LAYERS: dict[str, set[str]] = {  # layer -> the layers it may import besides itself
    "errors": set(),
    "cli": {"errors"},
    "storage": {"errors", "cli"},
    "config": {"cli", "errors"},
    "jpeg": {"errors", "storage"},
    "reporting": BASE,
    "beton": BASE | {"jpeg"},
    "sources": BASE | {"beton"},
    "loading": BASE | {"jpeg", "beton", "sources"},
    "models": BASE,
    "optim": BASE,
    "augment": BASE | {"loading"},
    "aws": {"errors", "cli", "storage"},  # needs neither torch nor numpy
    "training": BASE | {"jpeg", "reporting", "beton", "sources", "loading", "models", "optim", "augment"},
}
MODULES = sorted((ROOT / "rebar").rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the absolute names of all imported modules, including imports inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / "rebar").parts[0].removesuffix(".py")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_every_module_has_a_layer() -> None:
    assert {layer_of(path) for path in MODULES} - {"__init__", "doctor"} == LAYERS.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_lower_layers(path: Path) -> None:
    layer = layer_of(path)
    if layer == "doctor":  # diagnoses every package, and imports them lazily
        names = [name for node in parse(path).body if not isinstance(node, ast.FunctionDef) for name in imported(node)]
        allowed = {"errors", "cli"}
    else:
        names = list(imported(parse(path)))
        allowed = {layer} | LAYERS.get(layer, set())
    own = [name.split(".") for name in names if name.split(".")[0] == "rebar"]
    used = {name[1] for name in own if len(name) > 1}
    assert used <= allowed
    assert not {name.split(".")[0] for name in names} & SCRIPTS


def test_modules_have_30_to_300_lines() -> None:
    """A longer module has several purposes, a shorter one belongs to another module."""
    modules = [path for path in MODULES if path.name not in ("__init__.py", "__main__.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules}
    assert {name: lines for name, lines in lengths.items() if not 30 <= lines <= 300} == {}


@pytest.mark.parametrize(
    "package", ["rebar.beton", "rebar.jpeg.turbojpeg", "rebar.doctor", "rebar.config", "rebar.aws.__main__"]
)
def test_package_imports_without_torch_and_ffcv(package: str) -> None:
    code = f"import sys, {package}; print(sorted({{'torch', 'torchvision', 'ffcv', 'numba'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_loading_imports_no_unneeded_packages() -> None:
    """Loading needs neither numba, nor the writer's packages, nor those of the configuration."""
    heavy = {"PIL", "cv2", "fastargs", "ffcv", "llvmlite", "numba", "pyarrow", "torchvision", "yaml"}
    code = f"import torch, sys, rebar.loading; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
