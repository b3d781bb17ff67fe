"""Programs of the system, with their errors told."""

import shutil
import subprocess

from rebar.cloud.errors import CloudError

PACKAGES = {
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
    "mdadm": "mdadm",
}


def run_program(*words: str, accept: tuple[int, ...] = (0,)) -> "subprocess.CompletedProcess[str]":
    """Run a program; raises CloudError where it is missing or ends with another status than ``accept``."""
    if shutil.which(words[0]) is None:
        package = PACKAGES.get(words[0], "util-linux")
        raise CloudError(f"the program {words[0]} is missing: install {package} (apt-get install {package})")
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode not in accept:
        reason = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1]
        raise CloudError(f"{' '.join(words)}: exit status {done.returncode}: {reason}")
    return done
