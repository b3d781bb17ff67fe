"""Run the tests that need a GPU. A skipped test counts as a failure."""

import collections
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_proof.job import REPOSITORY, Job

REHEARSED = "tests/training/test_step.py"


def run(job: Job) -> None:
    """Run the tests, in parallel if pytest-xdist is installed, and record those that did not pass."""
    files = [
        path.relative_to(REPOSITORY)
        for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text()
    ]
    outcomes = job.out / "gpu_tests_outcomes.jsonl"
    outcomes.unlink(missing_ok=True)
    args = ["-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu_proof.outcomes", "--durations=15"]
    if job.rehearse:
        args += [REHEARSED, "-k", "detected"]
    else:
        args += ["-m", "gpu", *map(str, files)]
        if importlib.util.find_spec("xdist"):
            args += ["-n", "10", "--dist", "worksteal"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GPU_PROOF_OUTCOMES": str(outcomes)}
    if not job.rehearse:
        environment["REBAR_REQUIRE_GPU"] = "1"
    process = subprocess.Popen([sys.executable, "-m", "pytest", *args], cwd=REPOSITORY, env=environment)
    try:
        process.wait(timeout=job.seconds_left)
    except subprocess.TimeoutExpired:
        job.note(unfinished="time limit reached")
        process.kill()
    record(job, outcomes)


def record(job: Job, outcomes: Path) -> None:
    """Count the outcomes and add a row per test that failed or was skipped."""
    tests = [json.loads(line) for line in outcomes.read_text().splitlines()]
    counts = collections.Counter(test["outcome"] for test in tests)
    job.note(**counts, slowest={test["test"]: test["seconds"] for test in sorted(tests, key=_seconds)[:-9:-1]})
    for test in tests:
        if test["outcome"] != "passed":
            job.add(test=test["test"], outcome=test["outcome"], message=test["message"][-300:])


def _seconds(test: dict[str, Any]) -> float:
    return float(test["seconds"])
