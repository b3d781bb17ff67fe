"""scripts/skypilot.yaml, parsed by SkyPilot if it is installed (pip install skypilot)."""

from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).resolve().parents[2] / "scripts" / "skypilot.yaml"
sky = pytest.importorskip("sky", reason="SkyPilot is not installed (pip install skypilot)")


def test_task_is_on_spot() -> None:
    task = sky.Task.from_yaml_config(yaml.safe_load(FILE.read_text()), env_overrides=[("BUCKET", "my-bucket")])
    (resources,) = task.resources
    assert resources.use_spot
    assert resources.accelerators == {"A10G": 4}
    assert task.num_nodes == 1
    assert task.envs["CONFIG"] == "rn50_configs/g5_4gpu.yaml"


def test_task_without_bucket_fails() -> None:
    with pytest.raises(ValueError, match="BUCKET"):
        sky.Task.from_yaml(str(FILE))
