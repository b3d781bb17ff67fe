"""ImageNet from wherever it may be had, to a place that ``write_dataset.py`` reads."""

import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

from rebar.aws.archives import DEVKIT, DEVKIT_URL, PUBLISHED_MD5, TRAIN, VAL, require_whole
from rebar.aws.client import AwsError, Clients, code_of, translate_aws_error
from rebar.aws.download import Address, download
from rebar.aws.file_lock import held
from rebar.aws.kaggle import ARCHIVE, find_archive, unzip
from rebar.aws.staging import stage
from rebar.aws.torrents import fetch_torrent, is_torrent

IMAGES = "ILSVRC/Data/CLS-LOC/"
LABELS = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "ILSVRC2012_val_labels.txt")
KNOWN = (
    "a folder, an https:// address of an archive, a .torrent (file or address), a magnet link, the hash of a torrent "
    "at academictorrents.com, s3://BUCKET/PREFIX, hf:imagenet-1k, or kaggle"
)


def obtain(
    clients: Clients,
    sources: Sequence[str],
    folder: Path,
    *,
    md5: Mapping[str, str] | None = None,
    devkit: str = DEVKIT_URL,
) -> str:
    """Fetch ImageNet into a folder, where it has to be fetched; returns what ``--data-dir`` is to be.

    Hugging Face, a tree in S3 and a folder are read where they are. ``md5``: known checksums besides the published
    ones. Goes on after a kill. Raises AwsError.
    """
    checksums = {**PUBLISHED_MD5, **(md5 or {})}
    if len(sources) == 1 and (place := _in_place(clients, sources[0])) is not None:
        if Path(place).is_dir():
            _check(Path(place), checksums, devkit)
        return place
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AwsError(f"{folder}: cannot be made: {error.strerror}") from None
    with held(folder / ".obtaining", f"{folder}: another process is fetching ImageNet to it: wait for it"):
        for source in sources:
            _fetch(clients, source, folder, checksums)
        _check(folder, checksums, devkit)
    return str(folder)


def _in_place(clients: Clients, source: str) -> str | None:
    if source.startswith("hf:"):
        return source
    if source.startswith("s3://"):
        return None if _archives_in(clients, source) else source
    if "://" not in source and not is_torrent(source) and source != "kaggle":
        if not Path(source).is_dir():
            raise AwsError(f"{source}: no such folder; ImageNet is taken from {KNOWN}")
        return str(Path(source).absolute())
    return None


def _fetch(clients: Clients, source: str, folder: Path, checksums: Mapping[str, str]) -> None:
    if is_torrent(source):
        for path in fetch_torrent(source, folder):
            _tell(f"{path}: there")
    elif source == "kaggle":
        archive = folder / ARCHIVE
        download(find_archive, archive)
        unzip(archive, folder, lambda name: name.startswith(IMAGES) or name in LABELS)
        _tell(f"{folder / IMAGES}: unpacked; {archive} is not needed any more")
    elif source.startswith("s3://"):
        bucket, prefix = _split(source)
        found = _archives_in(clients, source)
        if not found:
            raise AwsError(f"{source} holds none of ILSVRC's archives; a tree is a source of its own")
        for name in found:
            stage(clients, bucket, prefix + name, folder / name)
            _tell(f"{folder / name}: there")
    elif source.startswith(("https://", "http://")):
        name = urllib.parse.urlsplit(source).path.rpartition("/")[2]
        if not name:
            raise AwsError(f"{Address(source).shown}: the address ends in no file's name")
        download(lambda: Address(source), folder / name, md5=checksums.get(name))
        _tell(f"{folder / name}: there")
    else:
        raise AwsError(f"{source}: among several sources only what is downloaded can stand; known are {KNOWN}")


def _check(folder: Path, checksums: Mapping[str, str], devkit: str) -> None:
    """The archives there are as published; the classes of unsorted validation images are known."""
    for name in (TRAIN, VAL):
        if (folder / name).is_file():
            require_whole(folder / name, checksums)
    if not (folder / VAL).is_file():
        return
    kits = [folder / DEVKIT.removesuffix(suffix) for suffix in ("", ".gz", ".tar.gz")]
    if not any(path.exists() for path in [*kits, *(folder / name for name in LABELS)]):
        _tell(f"the development kit, which tells the classes of {VAL}, from {Address(devkit).shown}")
        download(lambda: Address(devkit), folder / DEVKIT, md5=checksums[DEVKIT])


def _archives_in(clients: Clients, source: str) -> list[str]:
    from botocore.exceptions import ClientError

    bucket, prefix = _split(source)
    found = []
    for name in (TRAIN, VAL, DEVKIT):
        with translate_aws_error(f"looking at s3://{bucket}/{prefix}{name}"):
            try:
                clients("s3").head_object(Bucket=bucket, Key=prefix + name)
                found.append(name)
            except ClientError as error:
                if code_of(error) not in ("404", "NoSuchKey"):
                    raise
    return found


def _split(source: str) -> tuple[str, str]:
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    if not bucket:
        raise AwsError(f"{source!r} is no place in S3: give s3://BUCKET/PREFIX")
    return bucket, f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
