"""Tests of rebar.doctor: its checks, advice and output."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rebar import doctor
from rebar.errors import RebarError

REPOSITORY = Path(__file__).resolve().parent.parent


def run_doctor(*flags: str, modules: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; ``modules`` shadows installed packages."""
    paths = [str(modules), str(REPOSITORY)] if modules else [str(REPOSITORY)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "rebar.doctor", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY)


def break_modules(folder: Path, *names: str) -> Path:
    """Make ``import name`` fail as if the package were not installed."""
    for name in names:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name!r}')\n")
    return folder


def put_command(folder: Path, name: str, output: str) -> None:
    """Install a fake command that prints ``output``."""
    (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    (folder / name).chmod(0o755)


def test_json_lists_every_check_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        doctor.check_machine(["--json"])
    report = json.loads(capsys.readouterr().out)
    assert [set(check) for check in report["checks"]] == [{"name", "status", "found", "advice"}] * len(doctor.CHECKS)
    assert stopped.value.code == (0 if report["can_run"] else 1)
    assert {check["status"] for check in report["checks"]} <= {"ok", "warning", "problem"}


def test_missing_packages_are_problems_not_tracebacks(tmp_path: Path) -> None:
    result = run_doctor("--json", modules=break_modules(tmp_path, "torch", "numba", "tqdm"))
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.returncode == 1
    assert result.stderr == ""
    for name in ("torch", "packages", "numba threads"):
        assert checks[name]["status"] == "problem"
        assert "setup.sh" in checks[name]["advice"]
    assert "numba" in checks["packages"]["found"]
    assert "tqdm" in checks["packages"]["found"]


def test_missing_ffcv_and_turbojpeg_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOJPEG_LIBRARY", "/no/such/library.so")
    result = run_doctor("--json", modules=break_modules(tmp_path, "ffcv"))
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["FFCV"]["status"] == checks["turbojpeg"]["status"] == "warning"
    assert checks["FFCV"]["found"].startswith("FFCV pipelines unavailable")
    assert result.returncode == 0


def test_quiet_prints_problems_only(tmp_path: Path) -> None:
    result = run_doctor("--quiet", modules=break_modules(tmp_path, "torch"))
    assert result.returncode == 1
    assert "✗ torch " in result.stdout
    assert "CPU cores" not in result.stdout


def test_unknown_flag_is_a_usage_error() -> None:
    with pytest.raises(RebarError) as error:
        doctor.check_machine(["--loud"])
    assert error.value.code == "config-invalid-value"


def test_as_table_prints_advice_below_each_check() -> None:
    table = doctor.as_table([doctor.Check("disk", "warning", "1 GiB", "free some"), doctor.Check("x", "ok", "y")])
    assert table.splitlines() == ["! disk  1 GiB", "        → free some", "  x     y"]


def test_gpus_are_listed_and_a_cpu_only_torch_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    put_command(tmp_path, "nvidia-smi", "\n".join(["NVIDIA A10G, 23028 MiB, 8.6, 580.65"] * 4))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.version, "cuda", None)

    assert doctor.check_gpus().found == "4 × NVIDIA A10G, 23028 MiB, sm 8.6, driver 580.65"
    check = doctor.check_torch()
    assert (check.status, "CUDA build" in check.advice) == ("warning", True)


def test_missing_gpu_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi in there
    monkeypatch.setattr(doctor, "NVIDIA_DEVICE", tmp_path / "nvidia0")
    assert (doctor.check_gpus().status, doctor.check_gpus().found) == ("warning", "none")


def test_small_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(total=64 * 2**20))
    check = doctor.check_shared_memory()
    assert (check.status, check.found) == ("warning", "0.06 GiB")
    assert "--shm-size" in check.advice


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_cgroup_cores_reads_cpu_limits(
    files: dict[str, str], cores: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    assert doctor.cgroup_cores() == cores
