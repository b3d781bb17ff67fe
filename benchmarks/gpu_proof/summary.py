"""Write summary.md and summary.json: the status and rows of all parts."""

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.gpu_proof.job import REPOSITORY, write_json

ANCHORS = (
    ("MLPerf Training 4.0, MXNet, per H100 (8 GPUs)", "7,165 images/s"),
    ("MLPerf Training 4.0, MXNet, per H200 (8 GPUs)", "7,940 images/s"),
    ("NVIDIA DeepLearningExamples, per A100 80 GB", "2,470 images/s"),
    ("timm, A100, synthetic images", "2,600 images/s"),
    ("timm, A100, end to end", "1,923 images/s"),
)
_SKIPPED = {"part", "rows", "rehearsal", "date", "command", "status", "seconds"}


def read_parts(out: Path) -> dict[str, dict[str, Any]]:
    """Return the parts' results by name."""
    parts = {}
    for path in sorted(out.glob("*.json")):
        if path.name != "summary.json":
            parts[path.stem] = json.loads(path.read_text())
    return parts


def commit_of(given: str) -> str:
    """Return the measured commit, or "unknown" outside a git repository."""
    if given:
        return given
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def summarize(arguments: argparse.Namespace) -> None:
    """Write both summaries."""
    parts = read_parts(arguments.out)
    machine: dict[str, Any] = next((row for row in parts.get("machine", {}).get("rows", [])), {})
    commit = commit_of(arguments.commit)
    write_json(
        arguments.out / "summary.json",
        {"rehearsal": arguments.rehearse, "commit": commit, "machine": machine, "parts": parts},
    )
    title = "Rehearsal on a CPU (no measurement)" if arguments.rehearse else f"Rebar on {machine.get('gpu', 'a GPU')}"
    lines = [f"# {title}", "", f"Commit {commit}.", ""]
    for name, part in parts.items():
        if name == "prepare":
            continue
        status = part.get("error") or part.get("status", "")
        lines += [f"## {name}", "", f"`{part.get('command', '')}`, {part.get('date', '')}: {status}.", ""]
        lines += [f"- {key}: {_cell(value)}" for key, value in part.items() if key not in _SKIPPED and key != "error"]
        lines += ["", *_table([row for row in part["rows"] if row]), ""]
        if name == "step":
            lines += ["Published figures, for orientation:", "", *(f"- {what}: {value}" for what, value in ANCHORS), ""]
    text = "\n".join(lines) + "\n"
    partial = arguments.out / "summary.md.partial"
    partial.write_text(text)
    os.replace(partial, arguments.out / "summary.md")


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return lines + ["| " + " | ".join(_cell(row.get(name, "")) for name in names) + " |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value).replace("|", "/").replace("\n", " ")
