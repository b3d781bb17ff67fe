"""Version pins agree: lock files, conda environment, pyproject.toml and FFCV's build."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
INSTALLED_APART = {"torch", "torchvision", "ffcv", "pre-commit", "ffcv-rebar"}  # other files, or not by the scripts


def requirements(file: str, python: str) -> dict[str, Requirement]:
    """Return the requirements of a file that apply to a version of Python on Linux, by canonical name."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    lines = (REPOSITORY / "scripts" / file).read_text().replace("\\\n", " ").splitlines()
    found: dict[str, Requirement] = {}
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line.split(" --hash")[0].strip())
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice for Python {python}"
            found[name] = requirement
    return found


def pins(python: str, file: str = "requirements-dev.txt") -> dict[str, str]:
    """Return the exact versions that the scripts install on a version of Python."""
    locked = requirements(file, python) | requirements("requirements-torch.txt", python)
    return {name: exact_version(requirement) for name, requirement in locked.items()}


def exact_version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not an exact pin"
    return specifier.version


def conda_environment() -> dict[str, Any]:
    environment: dict[str, Any] = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    return environment


@pytest.fixture
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    loaded: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return loaded


def direct_dependencies(project: dict[str, Any], *extras: str) -> list[Requirement]:
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


def test_conda_installs_the_locked_versions() -> None:
    named = [entry.split("=") for entry in conda_environment()["dependencies"] if isinstance(entry, str)]
    versions = {parts[0]: parts[1] for parts in named if len(parts) == 2}
    (from_pip,) = (entry["pip"] for entry in conda_environment()["dependencies"] if isinstance(entry, dict))
    conda = {canonicalize_name(r.name): exact_version(r) for r in map(Requirement, from_pip)}
    locked = pins(versions["python"])
    assert conda == {name: locked[name] for name in conda}


def test_conda_installs_every_direct_dependency(project: dict[str, Any]) -> None:
    (from_pip,) = (entry["pip"] for entry in conda_environment()["dependencies"] if isinstance(entry, dict))
    direct = direct_dependencies(project, *project["optional-dependencies"])
    assert {canonicalize_name(r.name) for r in direct} - {
        canonicalize_name(r.name) for r in map(Requirement, from_pip)
    } <= {"ffcv", "pre-commit"}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("requirements.txt", ["wandb", "aws", "hf", "ilsvrc", "ffcv"]),
        ("requirements-dev.txt", ["wandb", "aws", "hf", "ilsvrc", "ffcv", "onnx", "dev"]),
    ],
)
def test_lock_file_satisfies_every_direct_dependency(
    file: str, extras: list[str], python: str, project: dict[str, Any]
) -> None:
    locked = pins(python, file)
    for requirement in direct_dependencies(project, *extras):
        name = canonicalize_name(requirement.name)
        if name not in INSTALLED_APART - {"torch", "torchvision"}:
            assert locked[name] in requirement.specifier, f"run scripts/lock.sh: {requirement}"
    assert python in SpecifierSet(project["requires-python"])


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_every_locked_package_has_hashes(file: str) -> None:
    """With one hash in the file, pip checks all of them, and refuses packages without."""
    text = (REPOSITORY / "scripts" / file).read_text().replace("\\\n", " ")
    without = [line for line in text.splitlines() if line and not line.startswith("#") and "--hash=sha256:" not in line]
    assert without == []


@pytest.mark.parametrize("python", PYTHONS)
def test_training_and_development_use_the_same_versions(python: str) -> None:
    training, development = pins(python, "requirements.txt"), pins(python)
    assert training == {name: development[name] for name in training}


def test_ffcv_version_is_the_same_everywhere(project: dict[str, Any]) -> None:
    (built,) = re.findall(r"^version=(\S+)$", (REPOSITORY / "scripts/build_ffcv.sh").read_text(), re.MULTILINE)
    named = re.findall(r"ffcv==(\S+)", (REPOSITORY / "environment.yml").read_text())
    (extra,) = (r for r in direct_dependencies(project, "ffcv") if r.name == "ffcv")
    assert {*named, exact_version(extra)} == {built}


def test_running_python_is_supported(project: dict[str, Any]) -> None:
    assert "{}.{}".format(*sys.version_info) in SpecifierSet(project["requires-python"])


def test_nothing_installs_the_unrelated_package_rebar() -> None:
    """``rebar`` on PyPI is an unrelated project; this one is ``ffcv-rebar``."""
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    wrong = re.compile(r"pip3? install [^\n]*(?<![\w./-])'?\"?rebar(\[[a-z,]+\])?['\"]?(?![\w/-])|'rebar\[[a-z,]+\]'")
    text_files = {".py", ".md", ".sh", ".toml", ".yml", ".yaml", ".ipynb", ".sbatch", ""}
    paths = [REPOSITORY / name for name in tracked.stdout.splitlines()]
    texts = {path: path.read_text(errors="replace") for path in paths if path.suffix in text_files and path.is_file()}
    assert [path for path, text in texts.items() if path != Path(__file__).resolve() and wrong.search(text)] == []
