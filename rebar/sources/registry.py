"""Which source is meant: chosen by name, or recognised from what ``--data-dir`` is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rebar.beton.source import Source
from rebar.cli import warn
from rebar.errors import RebarError
from rebar.sources import huggingface, tar, webdataset
from rebar.sources.beton import BetonSource
from rebar.sources.files import is_image
from rebar.sources.folder import ImageFolder, Split, find_split, of_split, open_flat_folder
from rebar.sources.parquet import Parquet
from rebar.sources.s3 import PREFIX as S3_PREFIX
from rebar.sources.s3 import S3Folder
from rebar.sources.tar import COMPRESSED, refuse_compressed


@dataclass(frozen=True)
class Request:
    """A split of what the user named."""

    where: str
    """A path, a pattern of paths, or an address such as hf:imagenet-1k and s3://bucket/prefix."""
    split: Split
    labels: str = ""
    """The list of the classes of images that lie without class folders; else one near them is taken."""
    at_most: int | None = None
    """So many images will be chosen: a source that has to download may leave the rest."""

    @property
    def path(self) -> Path:
        return Path(self.where)


@dataclass(frozen=True)
class Kind:
    """One kind of source."""

    name: str
    looks_like: str
    recognises: Callable[[Request], bool]
    open: Callable[[Request], Source]


KINDS = (
    Kind(
        "hf",
        "hf:imagenet-1k or hf:OWNER/NAME: a data set of the Hugging Face hub",
        lambda request: request.where.startswith(huggingface.PREFIX),
        lambda request: huggingface.open_hub_dataset(request.where, request.split, request.at_most),
    ),
    Kind(
        "s3",
        "s3://bucket/prefix, of class folders",
        lambda request: request.where.startswith(S3_PREFIX),
        lambda request: S3Folder(request.where, request.split),
    ),
    Kind(
        "beton",
        "a .beton file, or a folder with train.beton and val.beton",
        lambda request: _beton(request).suffix == ".beton",
        lambda request: BetonSource(_beton(request)),
    ),
    Kind(
        "tar",
        "ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar, the folder they lie in, or a tar of class folders",
        lambda request: _tar(request) is not None,
        lambda request: tar.open_tar(_tar(request) or request.path, request.split, request.labels),
    ),
    Kind(
        "webdataset",
        "WebDataset shards: a folder of .tar files, one of them, or a pattern: shard-{000..146}.tar, 'shard-*.tar'",
        lambda request: any(webdataset.has_samples(path) for path in _files(request, ".tar")[:1]),
        lambda request: webdataset.open_webdataset(_some_files(request, ".tar")),
    ),
    Kind(
        "parquet",
        "a .parquet file, or a folder of them",
        lambda request: bool(_files(request, ".parquet")),
        lambda request: Parquet(_some_files(request, ".parquet")),
    ),
    Kind(
        "folder",
        "a folder of class folders, or the one above train/ and val/",
        lambda request: request.path.is_dir() and not _is_flat(request),
        lambda request: ImageFolder(find_split(request.path, request.split)),
    ),
    Kind(
        "flat",
        "ILSVRC's validation images in one folder, with a list of their classes near it or as --labels",
        lambda request: request.path.is_dir() and _is_flat(request),
        lambda request: open_flat_folder(find_split(request.path, request.split), request.labels),
    ),
)

TAKE_LABELS = ("flat", "tar")


def is_address(where: str) -> bool:
    """Whether this names something elsewhere, rather than a path."""
    return where.startswith((huggingface.PREFIX, S3_PREFIX))


def open_source(request: Request, kind: str = "auto") -> tuple[str, Source]:
    """The source that the request means, and the name of its kind.

    ``kind`` is the name of one of KINDS, or "auto" (or "imagenet") to recognise it. Raises RebarError where
    nothing is recognised, and whatever the source raises.
    """
    if kind in ("auto", "imagenet"):
        chosen = recognize(request)
    else:
        chosen = next(entry for entry in KINDS if entry.name == kind)
    if request.labels and chosen.name not in TAKE_LABELS:
        warn(f"--labels has no effect: {request.where} is of the kind '{chosen.name}', which knows its classes")
    try:
        return chosen.name, chosen.open(request)
    except OSError as error:
        raise RebarError(f"{error.filename or request.where}: cannot be read: {error.strerror or error}") from None


def recognize(request: Request) -> Kind:
    """The kind of source that the request looks like. Raises RebarError where it is none."""
    try:
        for kind in KINDS:
            if kind.recognises(request):
                return kind
    except OSError as error:
        raise RebarError(f"{request.where}: cannot be read: {error.strerror or error}") from None
    expected = "".join(f"\n  {kind.name:11}{kind.looks_like}" for kind in KINDS)
    if request.path.is_file():
        refuse_compressed(request.path)
        raise RebarError(f"{request.where}: is a file of a kind that is not known; expected one of{expected}")
    raise RebarError(f"{request.where}: no such folder or file; expected one of{expected}")


def _beton(request: Request) -> Path:
    """The .beton file itself, or the split's in a folder of them; else the path as it is."""
    inside = request.path / f"{request.split}.beton"
    return inside if inside.is_file() else request.path


def _tar(request: Request) -> Path | None:
    """The tar of the split that is not a WebDataset shard, if one is meant."""
    path = request.path
    if (archive := tar.ilsvrc_archive(path, request.split)).is_file() and not (path / request.split).is_dir():
        return archive
    if path.is_file() and path.name.lower().endswith((".tar", *COMPRESSED)):
        refuse_compressed(path)
        return None if webdataset.has_samples(path) else path
    return None


def _files(request: Request, suffix: str) -> list[Path]:
    """The split's files with an ending: the path itself, those of a pattern, or those in a folder."""
    path = request.path
    if path.is_file():
        return [path] if path.suffix == suffix else []
    if not path.is_dir():
        found = [file for file in webdataset.expand_shards(request.where) if file.suffix == suffix]
        missing = [file for file in found if not file.is_file()]
        if missing and len(missing) < len(found):
            raise RebarError(f"{missing[0]}: no such file, and {len(missing) - 1} more of {request.where} are missing")
        return of_split(found, request.split, request.where) if found and not missing else []
    inside = find_split(path, request.split)
    for folder in (path, path / "data") if inside == path else (inside,):
        if found := sorted(folder.glob(f"*{suffix}")):
            names = of_split([file.name for file in found], request.split, str(folder))
            return [folder / name for name in names]
    return []


def _some_files(request: Request, suffix: str) -> list[Path]:
    if files := _files(request, suffix):
        return files
    raise RebarError(f"{request.where}: there are no {suffix} files")


def _is_flat(request: Request) -> bool:
    """Whether the split's folder holds images, and no class folders."""
    found = False
    for entry in find_split(request.path, request.split).iterdir():
        if is_image(entry.name):
            found = True
        elif entry.is_dir():
            return False
    return found
