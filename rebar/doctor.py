"""Check this machine's software and hardware, and print what to do about each problem.

    rebar-doctor            a table (also: python -m rebar.doctor)
    rebar-doctor --json     the same for programs
    rebar-doctor --quiet    problems only; no output means no problems

Exits 0 if Rebar can run here, 1 otherwise. Packages are imported only within their check, so the doctor also runs on an
incomplete installation.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rebar.cli import CommandParser, run_command

REPOSITORY = Path(__file__).resolve().parent.parent
SETUP = "run ./scripts/setup.sh"
GIB = 2**30
MODULES = {"pillow": "PIL", "PyYAML": "yaml", "opencv-python-headless": "cv2"}  # packages whose module has another name
PACKAGES = ("numpy", "numba", "tqdm", "fastargs", "matplotlib", "psutil", *MODULES)
NVIDIA_DEVICE = Path("/dev/nvidia0")  # exists even if nvidia-smi is not installed
CGROUP = Path("/sys/fs/cgroup")

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """The result of one check. ``advice`` is empty if the status is ok."""

    name: str
    status: Status
    found: str
    advice: str = ""


def make_check(name: str, found: str, *, problem: str = "", warning: str = "") -> Check:
    """Return a check with status problem or warning if such advice is given, else ok."""
    status: Status = "problem" if problem else "warning" if warning else "ok"
    return Check(name, status, found, problem or warning)


def one_line(error: BaseException) -> str:
    """Return type and first line of an exception, at most 100 characters."""
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return text if len(text) <= 100 else text[:99] + "…"


def command_output(*command: str) -> str:
    """Return a command's stdout. Empty if it is not installed, fails, or takes more than 20 seconds."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def check_python() -> Check:
    """Check the version of Python."""
    is_supported = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return make_check(
        "Python",
        f"{platform.python_version()} ({sys.executable})",
        problem="" if is_supported else "Rebar needs 3.10 to 3.13: remove .venv and " + SETUP,
    )


def check_packages() -> Check:
    """Check that the Python packages import."""
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
    """Check that torch imports and can use the GPU, if there is one."""
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
    return make_check("torch", f"{torch.__version__} ({build})", warning=advice)


def check_torchvision() -> Check:
    """Check that torchvision imports, and that it was built for this torch."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            return Check("torchvision", "problem", one_line(error), SETUP)
        version = importlib.metadata.version("torchvision")
        found = f"{version}, built for another torch: Rebar defines the two missing operators"
        return Check("torchvision", "ok", found)
    except Exception as error:
        return Check("torchvision", "problem", one_line(error), SETUP)
    return Check("torchvision", "ok", str(torchvision.__version__))


def check_ffcv() -> Check:
    """Check FFCV and its compiled extension. Only pipelines of FFCV operations need it."""
    try:
        importlib.import_module("ffcv.libffcv")  # loads the extension
        return Check("FFCV", "ok", importlib.metadata.version("ffcv"))
    except Exception as error:
        found = f"FFCV pipelines unavailable ({one_line(error)})"
        return Check("FFCV", "warning", found, "if you need them: ./scripts/build_ffcv.sh")


def check_turbojpeg() -> Check:
    """Check libturbojpeg. Without it, OpenCV or Pillow decode full images."""
    try:
        from rebar.jpeg.turbojpeg import load_turbojpeg

        library = load_turbojpeg()
    except Exception as error:
        advice = "full images are decoded by OpenCV: apt-get install libturbojpeg0, or set TURBOJPEG_LIBRARY"
        return Check("turbojpeg", "warning", one_line(error), advice)
    version = command_output("pkg-config", "--modversion", "libturbojpeg")
    if not version:  # the library has no version function
        version = "3 or newer" if hasattr(library, "tj3Init") else "2 or older"
    return Check("turbojpeg", "ok", f"{version} ({library._name})")


def check_decoder() -> Check:
    """Check the compiled JPEG kernels for this processor."""
    from rebar.jpeg.kernel_cache import load_kernel, object_path

    try:
        if not object_path().exists():
            return Check("fast decoder", "warning", "not compiled yet: takes a minute on first use", SETUP)
        load_kernel()
    except Exception as error:
        return Check("fast decoder", "problem", one_line(error), SETUP)
    return Check("fast decoder", "ok", str(object_path()))


def check_threading_layers() -> Check:
    """Check which of numba's threading layers load."""
    modules = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
    usable = []
    for layer, module in modules.items():
        with suppress(Exception):
            importlib.import_module(f"numba.np.ufunc.{module}")
            usable.append(layer)
    if not usable:
        return Check("numba threads", "problem", "no threading layer loads", SETUP)
    return Check("numba threads", "ok", ", ".join(usable))


def has_nvidia_gpu() -> bool:
    """Return whether the machine has an NVIDIA GPU, regardless of torch."""
    return NVIDIA_DEVICE.exists() or bool(command_output("nvidia-smi", "--list-gpus"))


def check_gpus() -> Check:
    """Check the GPUs: name, memory, compute capability, driver."""
    query = "--query-gpu=name,memory.total,compute_cap,driver_version"
    gpus = command_output("nvidia-smi", query, "--format=csv,noheader").splitlines()
    if gpus:
        cells = [[cell.strip() for cell in gpu.split(",")] for gpu in gpus]
        descriptions = {f"{name}, {memory}, sm {sm}, driver {driver}" for name, memory, sm, driver in cells}
        return Check("GPUs", "ok", f"{len(gpus)} × " + " / ".join(sorted(descriptions)))
    if NVIDIA_DEVICE.exists():
        return Check("GPUs", "warning", "nvidia-smi is not installed", "install the NVIDIA driver's utilities")
    return Check("GPUs", "warning", "none", "training runs on the CPU, which is too slow for ImageNet")


def read_numbers(*names: str) -> list[int]:
    """Return the numbers in cgroup files; an empty list if a file is missing or contains 'max'."""
    try:
        return [int(word) for name in names for word in (CGROUP / name).read_text().split()]
    except (OSError, ValueError):
        return []


def cgroup_cores() -> float | None:
    """Return the cgroup's limit on CPU time in cores, or None."""
    quota, period = read_numbers("cpu.max") or read_numbers("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us") or (-1, 1)
    return quota / period if quota > 0 else None


def check_cores() -> Check:
    """Check the cores this process may use, given its affinity and cgroup."""
    present, allowed = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    usable = min(allowed, cgroup_cores() or allowed)
    advice = "give the container more CPU (docker run --cpus)" if usable < 2 <= present else ""
    return make_check("CPU cores", f"{usable:g} of {present} usable", warning=advice)


def check_memory() -> Check:
    """Check available memory: the machine's, or what remains of the cgroup's limit."""
    from rebar.storage.page_cache import available_memory

    available = available_memory()
    advice = "less than 2 GiB: use fewer workers and a smaller batch" if available < 2 * GIB else ""
    return make_check("free memory", f"{available / GIB:.1f} GiB", warning=advice)


def check_disk() -> Check:
    """Check free disk space in the repository and in /tmp."""
    free = {str(path): shutil.disk_usage(path).free for path in (REPOSITORY, Path("/tmp")) if path.exists()}
    found = ", ".join(f"{size / GIB:.0f} GiB in {path}" for path, size in free.items())
    advice = "less than 2 GiB: free some space, or keep data and logs on another disk"
    return make_check("free disk", found, warning=advice if min(free.values()) < 2 * GIB else "")


def check_shared_memory() -> Check:
    """Check /dev/shm: NCCL needs it, and containers limit it."""
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Check("/dev/shm", "warning", "none", "several GPUs need it: mount a tmpfs on /dev/shm")
    advice = "small: with several GPUs start the container with --shm-size=8g (or --ipc=host)"
    return make_check("/dev/shm", f"{size / GIB:.2f} GiB", warning=advice if size < GIB else "")


def check_open_files() -> Check:
    """Check the limit on open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    unlimited = limit == resource.RLIM_INFINITY
    advice = "too low for many workers: ulimit -n 65536" if not unlimited and limit < 1024 else ""
    return make_check("open files", "unlimited" if unlimited else str(limit), warning=advice)


_SOFTWARE = (check_python, check_packages, check_torch, check_torchvision, check_ffcv, check_turbojpeg, check_decoder)
_HARDWARE = (check_gpus, check_cores, check_memory, check_disk, check_shared_memory, check_open_files)
CHECKS: tuple[Callable[[], Check], ...] = (*_SOFTWARE, check_threading_layers, *_HARDWARE)


def as_table(checks: list[Check]) -> str:
    """Return one line per check, followed by its advice, if any."""
    marks = {"ok": " ", "warning": "!", "problem": "✗"}
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{marks[check.status]} {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"  {'':<{width}}  → {check.advice}")
    return "\n".join(lines)


def main() -> None:
    """Run as the console command ``rebar-doctor``."""
    run_command(check_machine)


def check_machine(argv: Sequence[str]) -> None:
    """Run every check, print the results, and exit with 1 if there is a problem."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = CommandParser(prog="rebar-doctor", description=summary)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--quiet", action="store_true", help="print problems only")
    options = parser.parse_args(list(argv))

    checks = [check() for check in CHECKS]
    problems = [check for check in checks if check.status == "problem"]
    if options.json:
        print(json.dumps({"can_run": not problems, "checks": [asdict(check) for check in checks]}, indent=2))
    elif options.quiet:
        print(as_table(problems), end="\n" if problems else "")
    else:
        print(as_table(checks))
        print(f"\n{len(problems)} problems: Rebar cannot run yet." if problems else "\nRebar can run here.")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
