"""The places that name versions agree: requirements, conda environment, pyproject, set-up."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENT_FILES = ("scripts/requirements.txt", "scripts/requirements-dev.txt")
NOT_OURS = {"pip", "setuptools", "wheel"}  # installers: pinned, but nothing depends on them
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pins(python: str) -> dict[str, str]:
    """What the requirements files install on a version of Python: name to exact version."""
    found: dict[str, str] = {}
    for file in REQUIREMENT_FILES:
        for line in (REPOSITORY / file).read_text().splitlines():
            if not line or line.startswith("#"):
                continue
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
                name = canonicalize_name(requirement.name)
                assert name not in found, f"{name} is pinned twice for Python {python}"
                found[name] = exact_version(requirement)
    return found


def exact_version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not an exact pin"
    return specifier.version


def conda_environment() -> dict[str, Any]:
    environment: dict[str, Any] = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    return environment


def conda_versions() -> dict[str, str]:
    """The versions conda is asked for, without what comes from pip."""
    named = [entry.split("=") for entry in conda_environment()["dependencies"] if isinstance(entry, str)]
    return {parts[0]: parts[1] for parts in named if len(parts) == 2}


@pytest.fixture
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    loaded: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return loaded


def test_conda_installs_the_versions_of_the_requirements() -> None:
    versions = conda_versions()
    (from_pip,) = (entry["pip"] for entry in conda_environment()["dependencies"] if isinstance(entry, dict))
    conda = {canonicalize_name(r.name): exact_version(r) for r in map(Requirement, from_pip)}
    conda["pip"] = versions["pip"]
    assert conda == pins(versions["python"])


@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_gets_the_same_packages(python: str) -> None:
    assert set(pins(python)) == set(pins("3.11"))


@pytest.mark.parametrize("python", PYTHONS)
def test_pyproject_admits_what_we_install(python: str, project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"].values()
    ranges = [Requirement(text) for group in (project["dependencies"], *extras) for text in group]
    allowed = {canonicalize_name(requirement.name): requirement.specifier for requirement in ranges}
    for name, version in pins(python).items():
        if name not in NOT_OURS:
            assert version in allowed[name], f"{name} {version} is outside {allowed[name]}"
    assert python in SpecifierSet(project["requires-python"])


def test_ffcv_has_one_version() -> None:
    (built,) = re.findall(r"^ffcv_version=(\S+)$", (REPOSITORY / "scripts/setup.sh").read_text(), re.MULTILINE)
    named = re.findall(r"ffcv==(\S+)", (REPOSITORY / "environment.yml").read_text())
    assert set(named) == {built}


def test_this_python_is_supported(project: dict[str, Any]) -> None:
    assert "{}.{}".format(*sys.version_info) in SpecifierSet(project["requires-python"])
