"""scripts/validation_run.sh writes, trains, evaluates and summarizes."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "validation_run.sh"
SMALL = [
    "--model.arch",
    "resnet18",
    "--resolution.min_res",
    "32",
    "--resolution.max_res",
    "32",
    "--validation.resolution",
]
SMALL += ["32", "--epochs", "1", "--training.batch_size", "16", "--precision", "32", "--num_workers", "1"]


@pytest.mark.nightly
def test_validation_run_of_a_small_model(images: Path, tmp_path: Path) -> None:
    counts = {"TRAIN_IMAGES": "40", "VAL_IMAGES": "20", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **counts, "RUN_FOLDER": str(tmp_path / "run"), "DATA_FOLDER": str(tmp_path / "data")}
    command = [SCRIPT, images, "--no-tests", *SMALL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    output = (tmp_path / "run/summary.txt").read_text()
    for resolution in (224, 256):
        assert f"evaluation  20 images at {resolution} px: top-1" in output
    assert "GPU tests   skipped" in output
    assert (tmp_path / "run/training/report.html").is_file()
