"""Tests of benchmarks/gpu_proof: rehearsal on the CPU, failing parts and time limits."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.gpu_proof.__main__ import LIMITS
from benchmarks.gpu_proof.job import Job, percentile
from benchmarks.gpu_proof.prepare import photograph
from benchmarks.gpu_proof.summary import summarize
from benchmarks.gpu_proof.training_step import flops_per_image
from rebar.jpeg.decode import decode_rgb
from tests.conftest import run

PARTS = tuple(LIMITS)


@pytest.mark.nightly
def test_rehearsal_runs_every_part(tmp_path: Path) -> None:
    run("-m", "benchmarks.gpu_proof", "--out", tmp_path / "out", "--rehearse")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["rehearsal"]
    assert {name: summary["parts"][name]["status"] for name in PARTS} == dict.fromkeys(PARTS, "finished")
    for name in PARTS:
        assert not [row for row in summary["parts"][name]["rows"] if "error" in row]
    assert summary["parts"]["end_to_end"]["every_step_once"]
    assert summary["parts"]["end_to_end"]["agrees"]
    assert (tmp_path / "out/summary.md").read_text().startswith("# Rehearsal on a CPU (no measurement)")


@pytest.mark.nightly
def test_part_over_its_time_limit_does_not_stop_the_next(tmp_path: Path) -> None:
    args = ["--only", "machine", "fashion_mnist", "--limit", "machine=0.2"]
    run("-m", "benchmarks.gpu_proof", "--out", tmp_path / "out", "--rehearse", *args)
    parts = json.loads((tmp_path / "out/summary.json").read_text())["parts"]
    assert parts["machine"]["status"] == "time limit reached"
    assert parts["fashion_mnist"]["status"] == "finished"


def test_attempt_records_a_failing_case_and_continues(tmp_path: Path) -> None:
    job = Job("step", tmp_path, tmp_path, rehearse=True, deadline=0.0)
    job.attempt(lambda: 1 / 0, case="first")  # type: ignore[arg-type, return-value]
    job.attempt(lambda: job.add(case="second", images_per_second=1234.5), case="second")
    job.skip("third")
    job.write("finished")
    summarize(argparse.Namespace(out=tmp_path, commit="0123abc", rehearse=False))
    content = json.loads((tmp_path / "step.json").read_text())
    assert content["rows"][0] == {"case": "first", "error": "ZeroDivisionError: division by zero"}
    assert content["not_measured"] == ["third"]
    page = (tmp_path / "summary.md").read_text()
    assert "| second |  | 1,234.5 |" in page
    assert "0123abc" in page


def test_photograph_is_reproducible_with_imagenets_bytes_per_pixel() -> None:
    import numpy as np

    content = photograph(3)
    assert content == photograph(3) != photograph(4)
    image = decode_rgb(np.frombuffer(content, np.uint8))
    assert max(image.shape) == 500
    assert 0.2 < len(content) / (image.shape[0] * image.shape[1]) < 0.8


def test_flops_per_image_of_resnet50_equals_published_value() -> None:
    multiply_adds, first_layer = 4_089_184_256, 64 * 3 * 7 * 7 * 112 * 112  # torchvision's 4.09 GFLOPs
    assert flops_per_image(224, "resnet50") == pytest.approx(2 * (3 * multiply_adds - first_layer), rel=1e-3)


def test_percentile_of_one_value_and_of_many() -> None:
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([float(number) for number in range(100)], 0.5) == 50.0
