"""scripts/setup_imagenet.sh, from pictures to a verified snapshot and back, on real disks."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.conftest import ZONE, cloud
from tests.cloud.disks import Disks
from tests.cloud.strict_aws import StrictAws
from tests.conftest import REPOSITORY, run

SCRIPT = REPOSITORY / "scripts" / "setup_imagenet.sh"


def script(step: str, **environment: str) -> str:
    done = subprocess.run([SCRIPT, step], env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wrong_use_is_explained() -> None:
    done = subprocess.run([SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert "setup|snapshot|ebs-only" in done.stderr


@pytest.mark.slow
def test_from_pictures_to_a_snapshot_and_back(
    aws: StrictAws, disks: Disks, instance: str, metadata: Any, pictures: Path, tmp_path: Path
) -> None:
    metadata(**{"instance-id": instance, "placement/availability-zone": ZONE})
    folder = tmp_path / "data"
    here = {"FOLDER": str(folder), "SIZE": "1", "IMAGENET_SOURCE": str(pictures)}
    script("setup", **here)
    written = (folder / "val.beton").read_bytes()
    assert "is there already" in script("setup", **here)
    assert "verified snap-" in script("snapshot", **here)
    for verb in ("detach", "delete"):
        cloud("volume", verb, "imagenet/beton", "--yes")
    assert "val.beton" in script("ebs-only", **here)
    assert (folder / "val.beton").read_bytes() == written
    code = "import sys; from rebar.beton.reader import BetonFile; print(len(BetonFile.open(sys.argv[1])))"
    assert int(run("-c", code, folder / "train.beton").stdout) > 0
    cloud("volume", "umount", "imagenet/beton", "--yes")
