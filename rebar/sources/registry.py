"""The registry of source kinds, which are chosen with ``--dataset`` or detected from ``--data-dir``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rebar.beton.images import Source, labels_of
from rebar.cli import and_others, warn
from rebar.errors import RebarError
from rebar.sources import huggingface, tar, webdataset
from rebar.sources.files import BetonSource, ImageFolder, open_flat_folder
from rebar.sources.layout import DiskTree, Split, filter_split, find_split, warn_about_classes, warn_about_numbers
from rebar.sources.parquet import STATE_FILE, ArrowFolder, ParquetFiles
from rebar.sources.s3 import PREFIX as S3_PREFIX
from rebar.sources.s3 import S3Folder
from rebar.sources.tar import COMPRESSED, check_uncompressed


@dataclass(frozen=True)
class Request:
    """A split of a dataset, as specified by the user."""

    location: str
    """A path, a pattern of paths, or an address such as hf:imagenet-1k or s3://bucket/prefix."""
    split: Split
    labels: str = ""
    """The path of a list of labels, for images without class folders. By default, a list is searched for."""
    image_key: str = ""
    """The extension of the image in each WebDataset sample. By default, a sample may have only one image."""
    max_images: int | None = None
    """The number of images that will be selected, if known. Sources that download may skip the others."""

    @property
    def path(self) -> Path:
        return Path(self.location)


@dataclass(frozen=True)
class Kind:
    """A kind of source."""

    name: str
    description: str
    matches: Callable[[Request], bool]
    open: Callable[[Request], Source]


KINDS = (
    Kind(
        "hf",
        "hf:imagenet-1k or hf:OWNER/NAME: a dataset of the Hugging Face Hub",
        lambda request: request.location.startswith(huggingface.PREFIX),
        lambda request: huggingface.open_hub_dataset(request.location, request.split, request.max_images),
    ),
    Kind(
        "s3",
        "s3://bucket/prefix with class folders, or with images and a list of labels",
        lambda request: request.location.startswith(S3_PREFIX),
        lambda request: S3Folder(request.location, request.split, request.labels),
    ),
    Kind(
        "beton",
        "a .beton file, or a folder with train.beton and val.beton",
        lambda request: _beton_path(request).suffix == ".beton",
        lambda request: BetonSource(_beton_path(request)),
    ),
    Kind(
        "tar",
        "ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar, the folder of these, or a tar of class folders",
        lambda request: _tar_path(request) is not None,
        lambda request: tar.open_tar(_tar_path(request) or request.path, request.split, request.labels),
    ),
    Kind(
        "webdataset",
        "WebDataset shards: a folder of .tar files, one of them, or a pattern: shard-{000..146}.tar, 'shard-*.tar'",
        lambda request: any(webdataset.is_shard(path) for path in _find_files(request, ".tar")[:1]),
        lambda request: webdataset.open_webdataset(_require_files(request, ".tar"), request.image_key),
    ),
    Kind(
        "parquet",
        "a .parquet file, or a folder of them",
        lambda request: bool(_find_files(request, ".parquet")),
        lambda request: ParquetFiles(_require_files(request, ".parquet")),
    ),
    Kind(
        "arrow",
        "a folder written by save_to_disk of Hugging Face's datasets, or the parent folder of train/ and validation/",
        lambda request: request.path.is_dir() and (find_split(request.path, request.split) / STATE_FILE).is_file(),
        lambda request: ArrowFolder(find_split(request.path, request.split)),
    ),
    Kind(
        "folder",
        "a folder of class folders, or the parent folder of train/ and val/",
        lambda request: request.path.is_dir() and not _is_flat(request),
        lambda request: ImageFolder(find_split(request.path, request.split)),
    ),
    Kind(
        "flat",
        "ILSVRC's validation images in one folder, with a list of labels near it or given with --labels",
        lambda request: request.path.is_dir() and _is_flat(request),
        lambda request: open_flat_folder(find_split(request.path, request.split), request.labels),
    ),
)

KINDS_WITH_LABELS = ("flat", "tar", "s3")


def is_remote(location: str) -> bool:
    """Return whether a location is an hf: or s3:// address."""
    return location.startswith((huggingface.PREFIX, S3_PREFIX))


def open_source(request: Request, kind: str = "auto") -> tuple[str, Source]:
    """Open the requested source; return the name of its kind, and the source.

    ``kind`` is the name of one of KINDS; "auto" (or "imagenet") detects it. Raises RebarError if no kind matches, or
    if the source cannot be opened.
    """
    if kind in ("auto", "imagenet"):
        chosen = detect_kind(request)
    else:
        chosen = next(entry for entry in KINDS if entry.name == kind)
    if request.labels and chosen.name not in KINDS_WITH_LABELS:
        warn(f"--labels has no effect: {request.location} is of kind '{chosen.name}', which includes the classes")
    if request.image_key and chosen.name != "webdataset":
        warn(f"--image-key has no effect: {request.location} is of kind '{chosen.name}'")
    try:
        source = chosen.open(request)
    except OSError as error:
        raise _unreadable(request, error) from None
    warn_about_classes(request.location, source.class_names)
    if source.class_names[0].isdecimal():  # otherwise labels_of() is not needed
        warn_about_numbers(request.location, source.class_names, labels_of(source))
    return chosen.name, source


def detect_kind(request: Request) -> Kind:
    """Return the first kind that matches the request. Raises RebarError if none does."""
    try:
        for kind in KINDS:
            if kind.matches(request):
                return kind
    except OSError as error:
        raise _unreadable(request, error) from None
    if request.path.is_file():
        check_uncompressed(request.path)
        raise RebarError(
            f"{request.location} is not a supported kind of file. Pass a .tar, .parquet or .beton file, a folder of "
            "class folders, hf:OWNER/NAME, or s3://BUCKET/PREFIX (all kinds: docs/datasets.md).",
            code="source-unrecognized",
        )
    raise RebarError(f"{request.location}: no such file or folder. Check the path.", code="source-not-found")


def _unreadable(request: Request, error: OSError) -> RebarError:
    path = error.filename or request.location
    return RebarError(
        f"{path} cannot be read: {error.strerror or error}. Check its permissions and the disk.",
        code="source-unreadable",
    )


def _beton_path(request: Request) -> Path:
    """Return the split's .beton file if the path is a folder that contains it, otherwise the path."""
    inside = request.path / f"{request.split}.beton"
    return inside if inside.is_file() else request.path


def _tar_path(request: Request) -> Path | None:
    """Return the path of the split's tar; None if there is no tar, or it is a WebDataset shard."""
    path = request.path
    if (archive := tar.ilsvrc_archive(path, request.split)).is_file() and not (path / request.split).is_dir():
        return archive
    if path.is_file() and path.name.lower().endswith((".tar", *COMPRESSED)):
        check_uncompressed(path)
        return None if webdataset.is_shard(path) else path
    return None


def _find_files(request: Request, suffix: str) -> list[Path]:
    """Return the split's files with a suffix: the path itself, the files of a pattern, or those in a folder."""
    path = request.path
    if path.is_file():
        return [path] if path.suffix == suffix else []
    if not path.is_dir():
        found = [file for file in webdataset.expand_shards(request.location) if file.suffix == suffix]
        missing = [file for file in found if not file.is_file()]
        if missing and len(missing) < len(found):
            raise RebarError(
                f"{request.location}: lacks {and_others(str(missing[0]), len(missing) - 1, 'file')}. Complete the "
                "copy, or correct the pattern.",
                code="source-not-found",
            )
        return filter_split(found, request.split, request.location) if found and not missing else []
    inside = find_split(path, request.split)
    for folder in (path, path / "data") if inside == path else (inside,):
        if found := sorted(folder.glob(f"*{suffix}")):
            names = filter_split([file.name for file in found], request.split, str(folder))
            return [folder / name for name in names]
    return []


def _require_files(request: Request, suffix: str) -> list[Path]:
    if files := _find_files(request, suffix):
        return files
    raise RebarError(f"{request.location}: no {suffix} files found. Check the path.", code="source-not-found")


def _is_flat(request: Request) -> bool:
    """Return whether the split's folder contains images but no class folders."""
    tree = DiskTree(find_split(request.path, request.split))
    return not tree.folders("") and tree.has_images("")
