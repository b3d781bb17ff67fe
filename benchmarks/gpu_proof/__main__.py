"""Measure Rebar on an NVIDIA GPU within a time budget, most important parts first.

    python -m benchmarks.gpu_proof --out DIR                        # all parts, in nine minutes
    python -m benchmarks.gpu_proof --out DIR --only step fed        # selected parts
    python -m benchmarks.gpu_proof --out DIR --rehearse             # every part on the CPU at toy size

Each part runs in its own process and writes DIR/PART.json incrementally and DIR/PART.log. A part that fails or exceeds
its time limit does not stop the next. DIR/summary.md and DIR/summary.json are rewritten after each part.
"""

import argparse
import contextlib
import faulthandler
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from benchmarks.gpu_proof.job import REPOSITORY, Job, write_json
from benchmarks.gpu_proof.summary import read_parts, summarize
from rebar.cli import run_command
from rebar.storage.files import check_writable

LIMITS = {
    "machine": 40,
    "gpu_tests": 170,
    "end_to_end": 170,
    "step": 150,
    "fed": 90,
    "compiled": 110,
    "loops": 80,
    "kernels": 40,
    "cudnn_search": 60,
    "fashion_mnist": 200,
}
"""Time limit of each part in seconds."""
ORDER = (
    ("machine",),
    ("gpu_tests", "end_to_end"),  # correctness only: their times are not results
    ("step",),
    ("fed",),
    ("compiled",),
    ("loops",),
    ("kernels",),
    ("cudnn_search",),
    ("fashion_mnist",),
)
"""The parts of one tuple run concurrently."""
NEED_DATA = {"end_to_end", "fed", "fashion_mnist"}


def run_part(arguments: argparse.Namespace, name: str, seconds: float) -> "subprocess.Popen[str]":
    """Start a part in its own process group."""
    command = [sys.executable, "-m", "benchmarks.gpu_proof", "--child", name, "--out", str(arguments.out)]
    command += ["--work", str(arguments.work), "--budget-seconds", str(seconds)]
    command += ["--rehearse"] if arguments.rehearse else []
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}",
    }
    with (arguments.out / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )


def run_together(arguments: argparse.Namespace, names: list[str], left: float) -> None:
    """Run parts concurrently, each up to its time limit, and write the summary."""
    began = time.monotonic()
    running = {name: run_part(arguments, name, min(arguments.limits[name], left)) for name in names}
    while running:
        for name, process in list(running.items()):
            seconds = time.monotonic() - began
            if process.poll() is None and seconds < min(arguments.limits[name], left):
                continue
            end_group(process)
            del running[name]
            record_end(arguments.out, name, process.returncode, seconds)
            print(f"{name}: exit status {process.returncode}, {seconds:.0f} s", flush=True)
        time.sleep(0.2)
    summarize(arguments)


def end_group(process: "subprocess.Popen[str]") -> None:
    """Kill a part's process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_child(arguments: argparse.Namespace) -> None:
    """Run one part in this process."""
    deadline = time.monotonic() + arguments.budget_seconds - 3
    job = Job(arguments.child, arguments.out, arguments.work, arguments.rehearse, deadline)
    job.write("running")
    if arguments.rehearse:
        import torch

        torch.set_num_threads(1)  # other load would make OpenMP's threads wait for each other
    faulthandler.dump_traceback_later(
        max(arguments.budget_seconds - 1.5, 1)
    )  # shows where a part was when its time ran out
    try:
        importlib.import_module(f"benchmarks.gpu_proof.{arguments.child}").run(job)
    except Exception as error:
        traceback.print_exc()
        job.note(error=f"{type(error).__name__}: {error}"[:500])
        job.write("failed")
        raise SystemExit(1) from None
    job.write("finished")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder for data; default OUT_work next to the results")
    parser.add_argument("--budget-seconds", type=float, default=520)
    parser.add_argument(
        "--only", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="PART", help=", ".join(LIMITS)
    )
    parser.add_argument("--limit", nargs="+", default=[], metavar="PART=SECONDS", help="change time limits")
    parser.add_argument("--rehearse", action="store_true", help="run every part on the CPU at toy size")
    parser.add_argument("--commit", default=os.environ.get("GPU_PROOF_COMMIT", ""), help="default: git's HEAD")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.limits = LIMITS | {name: float(value) for name, value in (word.split("=") for word in arguments.limit)}
    arguments.out = arguments.out.resolve()
    arguments.work = (arguments.work or arguments.out.with_name(arguments.out.name + "_work")).resolve()
    return arguments


def main() -> None:
    """Prepare the data in the background, run the parts and write the summary."""
    arguments = parse_arguments()
    if arguments.child:
        run_child(arguments)
        return
    began = time.monotonic()
    with contextlib.suppress(OSError):  # reported by check_writable
        arguments.out.mkdir(parents=True, exist_ok=True)
    check_writable(arguments.out / "summary.md")
    arguments.work.mkdir(parents=True, exist_ok=True)
    preparation = run_part(arguments, "prepare", arguments.budget_seconds) if NEED_DATA & {*arguments.only} else None
    try:
        for group in ORDER:
            names = [name for name in group if name in arguments.only]
            left = arguments.budget_seconds - (time.monotonic() - began)
            if names and left < 15:
                print(f"{', '.join(names)}: no time left", flush=True)
            elif names:
                run_together(arguments, names, left)
    finally:
        if preparation:
            end_group(preparation)
        summarize(arguments)
    print((arguments.out / "summary.md").read_text())


def record_end(out: Path, name: str, status: int, seconds: float) -> None:
    """Add the duration and final status of a part to its JSON file."""
    content = read_parts(out).get(name, {"part": name, "rows": []})
    content["seconds"] = round(seconds, 1)
    if status < 0:
        content["status"] = "time limit reached"
    elif status > 0 and content.get("status") == "running":
        content["status"] = "failed"
    write_json(out / f"{name}.json", content)


if __name__ == "__main__":
    run_command(lambda _: main())
