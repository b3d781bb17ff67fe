"""The tests that need a GPU; a skip counts as a failure."""

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.gpu_proof.job import REPOSITORY, Job

REHEARSED = "tests/training/test_background_save.py"


def run(job: Job) -> None:
    """Run them in parallel where pytest-xdist is installed, and record those that did not pass."""
    files = [
        path.relative_to(REPOSITORY)
        for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text()
    ]
    report = job.out / "gpu_tests.xml"
    words = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", "--durations=15"]
    if job.rehearse:
        words += [REHEARSED, "-k", "copy"]
    else:
        words += ["-m", "gpu", *map(str, files)]
        if importlib.util.find_spec("xdist"):
            words += ["-n", "6", "--dist", "loadfile"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not job.rehearse:
        environment["REBAR_REQUIRE_GPU"] = "1"
    subprocess.run([sys.executable, "-m", "pytest", *words], cwd=REPOSITORY, env=environment, timeout=job.seconds_left)
    record(job, report)


def record(job: Job, report: Path) -> None:
    """Count the outcomes; one row for each test that failed."""
    counts: dict[str, int] = {}
    rows = []
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        outcome, message = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome, message = child.tag, (child.get("message") or "")[:400]
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome != "passed":
            rows.append({"test": name, "outcome": outcome, "message": message})
    job.note(**counts)
    for row in rows:
        job.add(**row)
