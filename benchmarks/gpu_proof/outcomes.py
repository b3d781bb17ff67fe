"""A pytest plugin that appends each test's outcome to $GPU_PROOF_OUTCOMES, so that a killed run has results."""

import json
import os
from pathlib import Path

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a line per test that ran, or was skipped or failed before. In pytest-xdist, only the controller writes."""
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    text = "" if report.passed else str(report.longrepr)[-4000:]
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2), "message": text}
    with Path(os.environ["GPU_PROOF_OUTCOMES"]).open("a") as file:
        file.write(json.dumps(line) + "\n")
