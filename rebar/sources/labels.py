"""Which class each of ILSVRC's validation images is of; they come in one folder, without classes.

Any of these lists says so, and is known by its content:

- ``ILSVRC2012_validation_ground_truth.txt`` of the development kit: one ILSVRC2012_ID a line, in the order of
  the images, with ``meta.mat`` (or a text file of synsets in the order of the IDs) to say which synset that is;
- ``LOC_val_solution.csv`` of Kaggle: ``ILSVRC2012_val_00000001,n01751748 111 108 431 202``;
- one synset a line, in the order of the images;
- ``ILSVRC2012_val_00000001.JPEG n01751748``, an image and its synset a line;
- the script ``valprep.sh``: ``mv ILSVRC2012_val_00000001.JPEG n01751748/``.
"""

import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rebar.cli import warn
from rebar.errors import RebarError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKITS = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar", "ILSVRC2012_devkit_t12")
LISTS = (
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_val_labels.txt",
    "val_labels.txt",
    "valprep.sh",
)
SYNSETS_BY_ID = ("meta.mat", "map_clsloc.txt", "synsets.txt")
LEVELS_ABOVE = 4
"""Folders above the images that are searched: in Kaggle's archive the list lies so many above."""

_SYNSET = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class ValidationLabels:
    """The synset of each image: by the image's name, or by its number."""

    origin: str
    by_stem: dict[str, str]
    """Name of the image without its ending -> synset; empty where the list only has an order."""
    in_order: tuple[str, ...]
    """The synsets in the order of the images; empty where the list has names."""

    @property
    def class_names(self) -> list[str]:
        """All synsets, sorted."""
        return sorted(set(self.by_stem.values()) | set(self.in_order))

    def of(self, names: Sequence[str], where: str) -> list[str]:
        """The synsets of images that lie at ``where``, in the order of ``names``.

        Warns where the list has more images than there are. Raises RebarError where an image is not in it.
        """
        stems = [PurePosixPath(name).name.partition(".")[0] for name in names]
        known = self.by_stem or self._by_number(stems, where)
        if missing := [name for name, stem in zip(names, stems, strict=True) if stem not in known]:
            raise RebarError(f"{where}: {missing[0]} and {len(missing) - 1} more images are not in {self.origin}")
        if len(names) < len(known):
            warn(f"{self.origin} has {len(known):,} images, {where} only {len(names):,}: perhaps a copy is incomplete")
        return [known[stem] for stem in stems]

    def _by_number(self, stems: Sequence[str], where: str) -> dict[str, str]:
        if all(_NUMBERED.fullmatch(stem) for stem in stems):
            return {f"ILSVRC2012_val_{number:08}": synset for number, synset in enumerate(self.in_order, start=1)}
        if len(stems) == len(self.in_order):
            return dict(zip(sorted(stems), self.in_order, strict=True))
        raise RebarError(
            f"{self.origin}: has {len(self.in_order):,} lines, but {where} has {len(stems):,} images whose names "
            "(such as ILSVRC2012_val_00000001.JPEG) do not tell their line; give a list of names with --labels FILE"
        )


def find_labels(near: Path, given: str = "") -> ValidationLabels:
    """The labels that the user gave, or those that lie near the images: beside them or in a folder above.

    Raises RebarError where there are none, or where they cannot be read.
    """
    if given:
        path = Path(given)
        if not path.exists():
            raise RebarError(f"--labels {path}: no such file")
        return _read_devkit(path) if path.is_dir() or ".tar" in path.name else _read_list(path)
    near = near.absolute()
    folders = [near, *near.parents[:LEVELS_ABOVE]] if near.is_dir() else list(near.parents[:LEVELS_ABOVE])
    for folder in folders:
        for name in (GROUND_TRUTH, f"data/{GROUND_TRUTH}", *LISTS):
            if (folder / name).is_file():
                return _read_list(folder / name)
        for name in DEVKITS:
            if (folder / name).exists():
                return _read_devkit(folder / name)
    raise RebarError(
        f"{near}: its images lie without class folders, and no list of their classes is near: looked for "
        f"{', '.join((GROUND_TRUTH, *LISTS, *DEVKITS[:1]))} there and in the folders above; download one of them, or "
        "give --labels FILE (docs/datasets.md says what it may look like)"
    )


def _read_list(path: Path) -> ValidationLabels:
    return _parse(str(path), _read_text(path), path.parent)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RebarError(f"{path}: cannot be read as a list of labels: {error}") from None


def _parse(origin: str, text: str, folder: Path) -> ValidationLabels:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and all(line.isdigit() for line in lines):
        return _from_ids(origin, lines, _synsets_by_id(origin, folder))
    if lines and all(_SYNSET.fullmatch(line) for line in lines):
        return ValidationLabels(origin, {}, tuple(lines))
    by_stem = {}
    for line in lines:
        name, _, rest = line.removeprefix("mv ").replace(",", " ").strip().partition(" ")
        synset = _SYNSET.match(rest.strip())
        if synset and name.lower() != "mkdir":
            by_stem[PurePosixPath(name).name.partition(".")[0]] = synset.group()
    if not by_stem:
        raise RebarError(
            f"{origin}: is no list of the validation images' classes; it should have a number or a synset a line, "
            "or an image and its synset (docs/datasets.md shows the forms)"
        )
    return ValidationLabels(origin, by_stem, ())


def _from_ids(origin: str, lines: Sequence[str], synsets: dict[int, str]) -> ValidationLabels:
    if unknown := sorted({int(line) for line in lines} - synsets.keys()):
        raise RebarError(f"{origin}: has the ID {unknown[0]}, which the list of synsets does not have")
    return ValidationLabels(origin, {}, tuple(synsets[int(line)] for line in lines))


def _synsets_by_id(origin: str, folder: Path) -> dict[int, str]:
    for name in SYNSETS_BY_ID:
        if (path := folder / name).is_file():
            return _from_meta(str(path), path.read_bytes()) if name.endswith(".mat") else _from_text(path)
    raise RebarError(
        f"{origin}: numbers the classes by ILSVRC2012_ID, and nothing says which synsets these are: put meta.mat of "
        f"the development kit beside it, or a text file {SYNSETS_BY_ID[2]} of synsets in the order of the IDs"
    )


def _from_text(path: Path) -> dict[int, str]:
    """Lines of a synset and perhaps its ID; without IDs, they count from 1."""
    found = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        words = line.split()
        if words:
            found[int(words[1]) if len(words) > 1 and words[1].isdigit() else number] = words[0]
    return found


def _from_meta(origin: str, content: bytes) -> dict[int, str]:
    """The ``synsets`` of the development kit's ``meta.mat``."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise RebarError(f"{origin}: reading it takes SciPy: pip install scipy") from None
    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        return {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets}
    except Exception as error:  # whatever SciPy raises for a damaged file
        raise RebarError(f"{origin}: is not the development kit's meta.mat ({error}); download it again") from None


def _read_devkit(path: Path) -> ValidationLabels:
    """The labels in a development kit: its folder, or the archive as downloaded."""
    if path.is_dir():
        data = path / "data" if (path / "data").is_dir() else path
        return _read_list(data / GROUND_TRUTH)
    try:
        with tarfile.open(path) as tar:
            files = {PurePosixPath(entry.name).name: entry for entry in tar if entry.isreg()}
            contents = {}
            for name in (GROUND_TRUTH, "meta.mat"):
                extracted = tar.extractfile(files[name])
                assert extracted is not None
                contents[name] = extracted.read()
    except KeyError as error:
        raise RebarError(f"{path}: is not ILSVRC2012's development kit: it has no {error.args[0]}") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise RebarError(f"{path}: cannot be read ({error}); download it again") from None
    lines = contents[GROUND_TRUTH].decode("ascii", "replace").split()
    return _from_ids(str(path), lines, _from_meta(f"{path}:meta.mat", contents["meta.mat"]))
