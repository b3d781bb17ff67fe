"""``data obtain``: download ImageNet from any of its sources, as input of ``write_dataset.py``."""

import contextlib
import re
import sys
import urllib.parse
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebar.aws.commands import Aws, argument, command
from rebar.aws.download import download, download_competition, download_torrent, is_torrent, redacted_url, unzip
from rebar.cli import progress_bar
from rebar.storage.aws import AwsError, S3NotFoundError, translate_aws_error
from rebar.storage.files import file_lock, hash_of, write_error
from rebar.storage.s3 import S3Prefix
from rebar.storage.s3 import download as download_object

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
PUBLISHED_MD5 = {
    TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
    VAL: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
"""From ImageNet's download page; the same as in torchvision."""
DEVKIT_URL = f"https://image-net.org/data/ILSVRC/2012/{DEVKIT}"
COMPETITION = "imagenet-object-localization-challenge"
IMAGES = "ILSVRC/Data/CLS-LOC/"
"""Folder of the images in Kaggle's zip."""
LABELS = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "ILSVRC2012_val_labels.txt")
SOURCES = (
    "a folder, the URL of an archive, a .torrent (file or URL), a magnet link, an info hash at academictorrents.com, "
    "s3://BUCKET/PREFIX, hf:imagenet-1k, or kaggle"
)
_MD5SUM_LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](?:.*/)?([^/]+)")


@command(
    "data obtain",
    "kaggle --to /imagenet",
    argument("sources", nargs="+", metavar="SOURCE", help=f"{SOURCES}; several are downloaded one after the other"),
    argument("--to", type=Path, required=True, metavar="FOLDER", help="folder for the downloads"),
    argument("--md5", type=Path, metavar="FILE", help="additional MD5s, in the format of md5sum"),
    argument("--devkit", default=DEVKIT_URL, metavar="URL", help="development kit (default: %(default)s)"),
    changes=False,
)
def _obtain(aws: Aws, options: Namespace) -> None:
    """Download ImageNet. Verifies checksums, resumes, and prints the --data-dir for write_dataset.py.

    Hugging Face, a tree of images in S3 and a local folder are read in place.
    """
    sources, folder, devkit = options.sources, options.to, options.devkit
    md5 = _read_checksums(options.md5) if options.md5 else {}
    checksums = {**PUBLISHED_MD5, **md5}
    if len(sources) == 1 and (data_dir := _data_dir_read_in_place(aws, sources[0])) is not None:
        if Path(data_dir).is_dir():
            _verify_archives_and_get_devkit(Path(data_dir), checksums, devkit)
        print(data_dir)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None
    with file_lock(
        folder / ".download.lock",
        f"{folder}: another process is downloading ImageNet to it. Wait until it has finished.",
    ):
        for source in sources:
            _download(aws, source, folder, checksums)
        _verify_archives_and_get_devkit(folder, checksums, devkit)
    print(folder)


def _read_checksums(path: Path) -> dict[str, str]:
    """Return MD5s by file name from the output of ``md5sum``. Raises AwsError ``md5-list-invalid`` otherwise."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise AwsError(f"{path} cannot be read: {error}.", code="md5-list-invalid") from None
    found = {}
    for number, line in enumerate(lines, 1):
        match = _MD5SUM_LINE.fullmatch(line)
        if match is None:
            raise AwsError(
                f"{path}: line {number} is not from md5sum. Write the file with md5sum FILES > {path.name}.",
                code="md5-list-invalid",
            )
        found[match[2]] = match[1].lower()
    return found


def _check_md5(path: Path, checksums: Mapping[str, str]) -> None:
    """Raise AwsError ``md5-mismatch`` if the MD5 of a file is not the one listed for its name.

    A hidden file next to it records a successful check, so that the file is read only once.
    """
    expected = checksums.get(path.name)
    if expected is None:
        return
    note, status = path.with_name(f".{path.name}.checked"), path.stat()
    stamp = f"{expected} {status.st_size} {status.st_mtime_ns}"
    if note.is_file() and note.read_text() == stamp:
        return
    with (
        path.open("rb", buffering=0) as file,
        progress_bar(f"MD5 of {path.name}", status.st_size, "B") as bar,
    ):
        found = hash_of(file, "md5", on_read=bar.update).hexdigest()
    if found != expected:
        raise AwsError(
            f"{path}: its MD5 is {found}, not {expected}. Delete the file and run the command again. If "
            "this is another version of the file, list its MD5 with --md5.",
            code="md5-mismatch",
        )
    with contextlib.suppress(OSError):  # the folder may be read-only
        note.write_text(stamp)


def _data_dir_read_in_place(aws: Aws, source: str) -> str | None:
    """Return the value for ``--data-dir`` if the source is read in place, without a download; else None."""
    if source.startswith("hf:"):
        return source
    if source.startswith("s3://"):
        return None if _archives_in(aws("s3"), source) else source
    if "://" not in source and not is_torrent(source) and source != "kaggle":
        if not Path(source).is_dir():
            raise AwsError(f"{source}: no such folder. The source is {SOURCES}.", code="imagenet-source-unknown")
        return str(Path(source).absolute())
    return None


def _download(aws: Aws, source: str, folder: Path, checksums: Mapping[str, str]) -> None:
    if is_torrent(source):
        download_torrent(source, folder)
    elif source == "kaggle":
        archive = download_competition(COMPETITION, folder)
        unzip(archive, folder, lambda name: name.startswith(IMAGES) or name in LABELS)
        _print(f"{folder / IMAGES}: extracted; {archive} can be deleted")
    elif source.startswith("s3://"):
        client, prefix = aws("s3"), S3Prefix.parse(source, "SOURCE")
        found = _archives_in(client, source)
        if not found:
            raise AwsError(
                f"{source} contains none of ImageNet's archives. A tree of images must be the only source.",
                code="imagenet-source-unknown",
            )
        for name in found:
            if not (folder / name).is_file():
                download_object(client, prefix.bucket, prefix.key(name), folder / name)
                _print(f"{folder / name}: downloaded")
    elif source.startswith(("https://", "http://")):
        name = urllib.parse.urlsplit(source).path.rpartition("/")[2]
        if not name:
            raise AwsError(f"{redacted_url(source)}: the URL has no file name.", code="imagenet-source-unknown")
        _download_checked(source, folder / name, checksums)
    else:
        raise AwsError(
            f"{source} is read in place, so it must be the only source. Sources are {SOURCES}.",
            code="imagenet-source-unknown",
        )


def _download_checked(url: str, target: Path, checksums: Mapping[str, str]) -> None:
    is_new = not target.is_file()
    download(url, target)
    try:
        _check_md5(target, checksums)
    except AwsError:
        if is_new:  # never delete an existing file
            target.unlink()
        raise
    _print(f"{target}: downloaded")


def _verify_archives_and_get_devkit(folder: Path, checksums: Mapping[str, str], devkit: str) -> None:
    """Verify the archives, and download the development kit if the classes of the validation images are unknown."""
    for name in (TRAIN, VAL):
        if (folder / name).is_file():
            _check_md5(folder / name, checksums)
    kits = [folder / DEVKIT.removesuffix(suffix) for suffix in ("", ".gz", ".tar.gz")]
    if (folder / VAL).is_file() and not any(path.exists() for path in [*kits, *(folder / name for name in LABELS)]):
        _print(f"{redacted_url(devkit)} has the classes of {VAL}")
        _download_checked(devkit, folder / DEVKIT, checksums)


def _archives_in(client: Any, source: str) -> list[str]:
    """Return the names of ImageNet's archives below an S3 URL."""
    prefix, found = S3Prefix.parse(source, "SOURCE"), []
    for name in (TRAIN, VAL, DEVKIT):
        with contextlib.suppress(S3NotFoundError), translate_aws_error(f"reading {prefix}/{name}"):
            client.head_object(Bucket=prefix.bucket, Key=prefix.key(name))
            found.append(name)
    return found


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
