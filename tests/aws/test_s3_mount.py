"""Mount a bucket with the commands of docs/datasets.md, and write a .beton from the mount."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.aws.archives import NUM_TRAIN, train_images
from tests.aws.conftest import wait_for
from tests.aws.strict_aws import StrictAws
from tests.conftest import REPOSITORY, run

GUIDE = (REPOSITORY / "docs/datasets.md").read_text()
COMMANDS = re.findall(r"^(?:mount-s3|s3fs) .*$", GUIDE, flags=re.MULTILINE)
MOUNTABLE = shutil.which("s3fs") is not None and Path("/dev/fuse").exists() and os.geteuid() == 0
S3FS_OPTIONS = {"ro", "iam_role", "stat_cache_expire"}


def parsed(command: str) -> argparse.Namespace:
    """Parse a command as described in the manuals of mount-s3 and s3fs."""
    name, *words = shlex.split(command)
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("bucket")
    parser.add_argument("folder", type=Path)
    if name == "mount-s3":
        parser.add_argument("--prefix", default="")
        parser.add_argument("--read-only", action="store_true")
    else:
        parser.add_argument("-o", dest="options", action="append", default=[])
    return parser.parse_args(words)


def test_mount_commands_of_the_guide_are_valid_and_read_only() -> None:
    mountpoint, s3fs = map(parsed, COMMANDS)
    assert mountpoint.read_only
    assert mountpoint.prefix.endswith("/")  # required by Mountpoint
    assert "ro" in s3fs.options
    assert {option.partition("=")[0] for option in s3fs.options} <= S3FS_OPTIONS
    assert mountpoint.folder == s3fs.folder
    assert f"--data-dir {s3fs.folder}" in GUIDE
    assert "never train from one" in GUIDE


@pytest.mark.slow
@pytest.mark.skipif(not MOUNTABLE, reason="needs s3fs, FUSE and root")
def test_write_dataset_reads_from_a_mounted_bucket(aws: StrictAws, tmp_path: Path) -> None:
    import boto3

    s3: Any = boto3.client("s3")
    s3.create_bucket(Bucket="my-bucket")
    for synset, name, content in train_images():
        s3.put_object(Bucket="my-bucket", Key=f"imagenet/train/{synset}/{name}", Body=content)
    folder = tmp_path / "mount"
    folder.mkdir()
    (command,) = [command for command in COMMANDS if command.startswith("s3fs")]
    command = command.replace("/mnt/imagenet", str(folder)).replace(" -o iam_role=auto", "")  # not an EC2 instance
    options = ["-o", f"url={aws.url}", "-o", "use_path_request_style"]
    subprocess.run([*shlex.split(command), *options], check=True)
    try:
        wait_for(lambda: os.path.ismount(folder))
        done = run("write_dataset.py", "--split", "train", "--data-dir", folder, "--write-path", f"{tmp_path}/")
    finally:
        subprocess.run(["umount", folder], check=True)
    assert f"{NUM_TRAIN} images" in done.stdout
