"""ILSVRC's archives: what they are called, which MD5s are published for them, and whether a file has the right one."""

import contextlib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from rebar.aws.client import AwsError
from rebar.aws.progress import Progress

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
PUBLISHED_MD5 = {
    TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
    VAL: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
"""As ImageNet's download page gives them, and torchvision compares them."""
DEVKIT_URL = f"https://image-net.org/data/ILSVRC/2012/{DEVKIT}"
CHUNK = 4 * 2**20
LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](?:.*/)?([^/]+)")


def read_checksums(path: Path) -> dict[str, str]:
    """File name to MD5, from what ``md5sum`` printed; raises AwsError for anything else."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise AwsError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        match = LINE.fullmatch(line)
        if match is None:
            raise AwsError(f"{path}: line {number} is none of md5sum's (md5sum FILES > {path.name})")
        found[match[2]] = match[1].lower()
    return found


def require_whole(path: Path, checksums: Mapping[str, str]) -> None:
    """Raises AwsError where a file has another MD5 than the one known for its name; asked again, it is not read."""
    wanted = checksums.get(path.name)
    if wanted is None:
        return
    note, status = path.with_name(f".{path.name}.checked"), path.stat()
    stamp = f"{wanted} {status.st_size} {status.st_mtime_ns}"
    if note.is_file() and note.read_text() == stamp:
        return
    found = md5_of(path)
    if found != wanted:
        raise AwsError(
            f"{path}: its MD5 is {found}, not {wanted}: it is damaged or another file; delete it and run the command "
            "again, or, if it is what you want, give its MD5 with --md5"
        )
    with contextlib.suppress(OSError):  # in a folder for reading only it is read again the next time
        note.write_text(stamp)


def md5_of(path: Path) -> str:
    """A file's MD5, with progress."""
    content, progress = hashlib.md5(usedforsecurity=False), Progress(f"MD5 of {path.name}", path.stat().st_size)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            content.update(chunk)
            progress.add(len(chunk))
    progress.end()
    return content.hexdigest()
