"""What this machine offers to Rebar, what is missing, and what to do about it.

    python -m rebar.doctor            a table
    python -m rebar.doctor --json     the same for programs
    python -m rebar.doctor --quiet    problems only: nothing printed is good news

Exits 0 if Rebar can run here, 1 otherwise. Nothing is imported before its check, so that the doctor
itself runs on a half-finished installation.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parent.parent
SETUP = "run ./scripts/setup.sh"
GIB = 2**30
MODULES = {"pillow": "PIL", "PyYAML": "yaml", "opencv-python-headless": "cv2"}  # where the name differs
PACKAGES = ("numpy", "numba", "tqdm", "fastargs", "matplotlib", "psutil", *MODULES)
NVIDIA_DEVICE = Path("/dev/nvidia0")  # there even where nvidia-smi is not
CGROUP = Path("/sys/fs/cgroup")

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """What was found about one thing; ``advice`` says what to do unless all is well."""

    name: str
    status: Status
    found: str
    advice: str = ""


def judge(name: str, found: str, *, problem: str = "", warning: str = "") -> Check:
    """A check whose status is that of the first advice given."""
    status: Status = "problem" if problem else "warning" if warning else "ok"
    return Check(name, status, found, problem or warning)


def one_line(error: BaseException) -> str:
    """An exception as a table cell."""
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return text if len(text) <= 100 else text[:99] + "…"


def command_output(*command: str) -> str:
    """What a command prints, or nothing if it is missing, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# ------------------------------------------------------------------------------------------ software


def check_python() -> Check:
    """Python's own version."""
    fits = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return judge(
        "Python",
        f"{platform.python_version()} ({sys.executable})",
        problem="" if fits else "Rebar needs 3.10 to 3.13: remove .venv and " + SETUP,
    )


def check_packages() -> Check:
    """The plain Python packages: all must import."""
    found, broken = [], []
    for distribution in PACKAGES:
        try:
            importlib.import_module(MODULES.get(distribution, distribution))
            found.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except Exception as error:  # a broken binary package may raise anything
            broken.append(f"{distribution} ({one_line(error)})")
    if broken:
        return Check("packages", "problem", "cannot import " + ", ".join(broken), SETUP)
    return Check("packages", "ok", ", ".join(found))


def check_torch() -> Check:
    """torch, and whether it sees the GPU there is."""
    try:
        import torch
    except Exception as error:
        return Check("torch", "problem", one_line(error), SETUP)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    advice = ""
    if has_nvidia_gpu() and not torch.version.cuda:
        advice = f"this machine has a GPU: remove .venv and {SETUP} to get the CUDA build"
    elif has_nvidia_gpu() and not torch.cuda.is_available():
        advice = f"torch cannot use the GPU: is the driver too old for {build}? update it, or {SETUP}"
    return judge("torch", f"{torch.__version__} ({build})", warning=advice)


def check_torchvision() -> Check:
    """torchvision, and whether it is of the same build as torch."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            return Check("torchvision", "problem", one_line(error), SETUP)
        version = importlib.metadata.version("torchvision")
        found = f"{version}, built for another torch: Rebar declares the two operators its import lacks"
        return Check("torchvision", "ok", found)
    except Exception as error:
        return Check("torchvision", "problem", one_line(error), SETUP)
    return Check("torchvision", "ok", str(torchvision.__version__))


def check_ffcv() -> Check:
    """FFCV and its compiled extension."""
    try:
        importlib.import_module("ffcv.libffcv")  # loads the extension
        return Check("FFCV", "ok", importlib.metadata.version("ffcv"))
    except Exception as error:
        return Check("FFCV", "problem", one_line(error), SETUP + ", which builds it")


def loaded_library_path(name: str) -> str:
    """Where a shared library that this process has loaded lies."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(maxsplit=5)[-1] for line in lines if name in line), "")


def check_turbojpeg() -> Check:
    """libturbojpeg, found in the same way as rebar.jpeg finds it."""
    try:
        from rebar.jpeg.turbojpeg import load_turbojpeg

        library = load_turbojpeg()
    except Exception as error:
        return Check("turbojpeg", "problem", one_line(error), f"{SETUP}, or set TURBOJPEG_LIBRARY")
    version = command_output("pkg-config", "--modversion", "libturbojpeg")
    if not version:  # the library itself does not tell; its functions do
        version = "3 or newer" if hasattr(library, "tj3Init") else "2 or older"
    return Check("turbojpeg", "ok", f"{version} ({loaded_library_path('libturbojpeg') or library._name})")


def check_decoder() -> Check:
    """The fast JPEG decoder's machine code for this processor."""
    from rebar.jpeg.kernel_cache import compiled_file, load_kernel

    try:
        if not compiled_file().exists():
            return Check("fast decoder", "warning", "not compiled yet: a minute at its first use", SETUP)
        load_kernel()
    except Exception as error:
        return Check("fast decoder", "problem", one_line(error), SETUP)
    return Check("fast decoder", "ok", str(compiled_file()))


def check_threading_layers() -> Check:
    """Which of numba's thread pools can be used."""
    modules = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
    usable = []
    for layer, module in modules.items():
        with suppress(Exception):
            importlib.import_module(f"numba.np.ufunc.{module}")
            usable.append(layer)
    if not usable:
        return Check("numba threads", "problem", "no threading layer loads", SETUP)
    return Check("numba threads", "ok", ", ".join(usable))


# ------------------------------------------------------------------------------------------ hardware


def has_nvidia_gpu() -> bool:
    """Whether the machine has a GPU, whatever torch thinks."""
    return NVIDIA_DEVICE.exists() or bool(command_output("nvidia-smi", "--list-gpus"))


def check_gpus() -> Check:
    """Every GPU: name, memory, compute capability, driver."""
    query = "--query-gpu=name,memory.total,compute_cap,driver_version"
    gpus = command_output("nvidia-smi", query, "--format=csv,noheader").splitlines()
    if gpus:
        cells = [[cell.strip() for cell in gpu.split(",")] for gpu in gpus]
        seen = {f"{name}, {memory}, sm {sm}, driver {driver}" for name, memory, sm, driver in cells}
        return Check("GPUs", "ok", f"{len(gpus)} × " + " / ".join(sorted(seen)))
    if NVIDIA_DEVICE.exists():
        return Check("GPUs", "warning", "a device, no nvidia-smi", "install the NVIDIA driver's utilities")
    return Check("GPUs", "warning", "none", "training runs on the CPU: fine to try out, too slow for ImageNet")


def read_numbers(*names: str) -> list[int]:
    """The numbers in files of the container's limits; none if one is missing or says 'max'."""
    try:
        return [int(word) for name in names for word in (CGROUP / name).read_text().split()]
    except (OSError, ValueError):
        return []


def cgroup_cores() -> float | None:
    """The container's limit on CPU time, in cores; None where there is none."""
    quota, period = read_numbers("cpu.max") or read_numbers("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us") or (-1, 1)
    return quota / period if quota > 0 else None


def check_cores() -> Check:
    """The cores this process may use: affinity and container limits considered."""
    present, allowed = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    usable = min(allowed, cgroup_cores() or allowed)
    advice = "give the container more CPU (docker run --cpus)" if usable < 2 <= present else ""
    return judge("CPU cores", f"{usable:g} of {present} usable", warning=advice)


def cached_in_cgroup() -> int:
    """Bytes the container's memory counts as used, though they are only cached files."""
    with suppress(OSError):
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("file "))
    return 0


def check_memory() -> Check:
    """Free memory: the machine's, or what the container may still take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if numbers := read_numbers("memory.max", "memory.current"):
        limit, used = numbers
        available = min(available, limit - used + cached_in_cgroup())
    advice = "less than 2 GiB: use fewer workers and a smaller batch" if available < 2 * GIB else ""
    return judge("free memory", f"{available / GIB:.1f} GiB", warning=advice)


def check_disk() -> Check:
    """Free disk space here and for temporary files."""
    free = {str(path): shutil.disk_usage(path).free for path in (REPOSITORY, Path("/tmp")) if path.exists()}
    found = ", ".join(f"{size / GIB:.0f} GiB in {path}" for path, size in free.items())
    advice = "less than 2 GiB: free some, or keep data and logs elsewhere"
    return judge("free disk", found, warning=advice if min(free.values()) < 2 * GIB else "")


def check_shared_memory() -> Check:
    """/dev/shm, which containers make small and NCCL and data workers need."""
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Check("/dev/shm", "warning", "none", "several GPUs need it: mount a tmpfs on /dev/shm")
    advice = "small: with several GPUs start the container with --shm-size=8g (or --ipc=host)"
    return judge("/dev/shm", f"{size / GIB:.2f} GiB", warning=advice if size < GIB else "")


def check_open_files() -> Check:
    """How many files a process may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    unlimited = limit == resource.RLIM_INFINITY
    advice = "low for many workers: ulimit -n 65536" if not unlimited and limit < 1024 else ""
    return judge("open files", "unlimited" if unlimited else str(limit), warning=advice)


SOFTWARE = (check_python, check_packages, check_torch, check_torchvision, check_ffcv, check_turbojpeg, check_decoder)
HARDWARE = (check_gpus, check_cores, check_memory, check_disk, check_shared_memory, check_open_files)
CHECKS: tuple[Callable[[], Check], ...] = (*SOFTWARE, check_threading_layers, *HARDWARE)


def as_table(checks: list[Check]) -> str:
    """One line a check; below what is not well, what to do."""
    marks = {"ok": " ", "warning": "!", "problem": "✗"}
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{marks[check.status]} {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"  {'':<{width}}  → {check.advice}")
    return "\n".join(lines)


def main() -> None:
    """Run every check, print what was found, and exit with the verdict."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m rebar.doctor", description=summary)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--quiet", action="store_true", help="print problems only")
    options = parser.parse_args()

    checks = [check() for check in CHECKS]
    problems = [check for check in checks if check.status == "problem"]
    if options.json:
        print(json.dumps({"can_run": not problems, "checks": [asdict(check) for check in checks]}, indent=2))
    elif options.quiet:
        if problems:
            print(as_table(problems))
    else:
        print(as_table(checks))
        print(f"\n{len(problems)} problems: Rebar cannot run yet." if problems else "\nRebar can run here.")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
