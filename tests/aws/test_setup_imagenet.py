"""scripts/setup_imagenet.sh, from images to a verified snapshot and back, on real file systems."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rebar.aws.download_imagenet import DEVKIT, TRAIN, VAL
from tests.aws.archives import NUM_TRAIN, make_archives, serving, val_images
from tests.aws.conftest import ZONE, run_cli
from tests.aws.disks import Disks
from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "setup_imagenet.sh"


def script(*words: str, **environment: str) -> str:
    done = subprocess.run([SCRIPT, *words], env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wrong_arguments_print_the_usage() -> None:
    done = subprocess.run([SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert "setup|snapshot|ebs-only" in done.stderr


@pytest.fixture
def machine(disks: Disks, instance: str, metadata: Any) -> str:
    """Make this machine an EC2 instance; returns its id."""
    metadata(**{"instance-id": instance, "placement/availability-zone": ZONE})
    return instance


@pytest.mark.nightly
def test_images_to_snapshot_and_back(machine: str, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    here = {"FOLDER": str(folder), "SIZE": "1", "IMAGENET_SOURCE": str(images), "WRITE_FLAGS": "--subset 40"}
    script("setup", **here)
    written = (folder / "val.beton").read_bytes()
    assert "val.beton exist" in script("setup", **here)
    assert "verified snap-" in script("snapshot", **here)
    for verb in ("detach", "delete"):
        run_cli("volume", verb, "imagenet/beton", "--yes")
    assert script("ebs-only", **here).count("samples   40 in 10 classes") == 2
    assert (folder / "val.beton").read_bytes() == written
    run_cli("volume", "umount", "imagenet/beton", "--yes")


@pytest.mark.nightly
def test_setup_downloads_archives_and_resumes(disks: Disks, machine: str, tmp_path: Path) -> None:
    folder, archives = tmp_path / "data", make_archives(tmp_path / "archives")
    with serving() as web:
        web.files |= {f"/{name}": (archives / name).read_bytes() for name in (TRAIN, DEVKIT)}
        here = {
            "FOLDER": str(folder),
            "SIZE": "1",
            "ORIGINALS_SIZE": "1",
            "IMAGENET_DIR": str(tmp_path / "originals"),
            "IMAGENET_SOURCE": f"{web.url}/{TRAIN}?signature=5ec2e7 {web.url}/{VAL}?signature=5ec2e7",
            "IMAGENET_MD5": str(archives / "md5sums"),
            "IMAGENET_DEVKIT": f"{web.url}/{DEVKIT}",
        }
        stopped = subprocess.run([SCRIPT, "setup"], env={**os.environ, **here}, capture_output=True, text=True)
        assert stopped.returncode == 1
        assert "[download-failed]" in stopped.stderr
        web.files[f"/{VAL}"] = (archives / VAL).read_bytes()
        output = script("setup", "--extract", **here)
        assert "5ec2e7" not in output + stopped.stdout + stopped.stderr
        assert [path.partition("?")[0] for path, _ in web.requests] == [f"/{TRAIN}", f"/{VAL}", f"/{VAL}", f"/{DEVKIT}"]
    for synset, name, content in val_images():
        assert (tmp_path / "originals/tree/val" / synset / name).read_bytes() == content
    assert len(disks.loops) == 2
    output = script("snapshot", **here)
    assert output.count("files match the manifest") == 2
    for role in ("beton", "originals"):
        run_cli("volume", "detach", f"imagenet/{role}", "--yes")
        run_cli("volume", "delete", f"imagenet/{role}", "--yes")
    shutil.rmtree(folder)
    assert f"samples   {NUM_TRAIN} in 3 classes" in script("ebs-only", **here)
    run_cli("volume", "umount", "imagenet/beton", "--yes")
