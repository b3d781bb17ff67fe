"""Classes as numbers or names, labels of ILSVRC's unsorted validation images, and ImageNet-1k's class names.

ILSVRC's validation images are in one folder. Their classes are read from one of these lists; the format is detected
from the content:

- ``ILSVRC2012_validation_ground_truth.txt`` of the development kit: one ILSVRC2012_ID per line, in the order of the
  images. ``meta.mat``, or a text file of synsets in the order of the IDs, maps IDs to synsets.
- ``LOC_val_solution.csv`` of Kaggle: ``ILSVRC2012_val_00000001,n01751748 111 108 431 202``
- one synset per line, in the order of the images
- one image and its synset per line: ``ILSVRC2012_val_00000001.JPEG n01751748``
- the script ``valprep.sh``: ``mv ILSVRC2012_val_00000001.JPEG n01751748/``
"""

import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rebar.beton.reader import MAX_CLASSES
from rebar.cli import and_others, warn
from rebar.errors import RebarError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKITS = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar", "ILSVRC2012_devkit_t12")
LISTS = (
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_val_labels.txt",
    "val_labels.txt",
    "val_annotations.txt",
    "valprep.sh",
)
SYNSETS_BY_ID = ("meta.mat", "map_clsloc.txt", "synsets.txt")
PARENTS_SEARCHED = 4
"""Parent folders searched for a list. In Kaggle's archive, the list is four levels above the images."""
SYNSETS_FILE = Path(__file__).with_name("imagenet_1k_synsets.txt")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_SYNSET = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")


def parse_class(value: object) -> int | str:
    """Return the class of an image: a number if it is one, also as ``"3"``, ``"3.0"`` or ``3.0``, otherwise a name.

    Raises ValueError with the reason if it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("is neither a number nor a name")
    text = str(value).strip()
    if not text:
        raise ValueError("is empty")
    if isinstance(value, str) and not _NUMBER.fullmatch(text):
        return text
    number = float(text)
    if not number.is_integer():
        raise ValueError(f"is {text}, which is not an integer")
    if not 0 <= number < MAX_CLASSES:
        raise ValueError(f"is {text}, which is not from 0 to {MAX_CLASSES - 1:,}")
    return int(number)


def to_synsets(class_names: Sequence[str]) -> list[str]:
    """Return synsets for ImageNet-1k's class names in words, in the same order; other names are returned unchanged.

    Hugging Face names the classes in words ("tench, Tinca tinca"), folders and archives by synset (n01440764). The
    order is the same, so with the same names, files from both can be used together.
    """
    if len(class_names) == 1000 and class_names[0].startswith("tench") and class_names[-1].startswith("toilet tissue"):
        return SYNSETS_FILE.read_text(encoding="ascii").split()
    return list(class_names)


@dataclass(frozen=True)
class ValidationLabels:
    """The synset of each validation image, by file name or by position."""

    origin: str
    """The path of the list."""
    by_stem: dict[str, str]
    """File name without extension -> synset. Empty if the list gives positions."""
    in_order: tuple[str, ...]
    """The synsets in the order of the images. Empty if the list gives names."""

    @property
    def class_names(self) -> list[str]:
        """All synsets, sorted."""
        return sorted(set(self.by_stem.values()) | set(self.in_order))

    def look_up(self, names: Sequence[str], location: str) -> list[str]:
        """Return the synsets of the images ``names`` at ``location``, in the order of ``names``.

        Warns if the list has more images than ``names``. Raises RebarError if an image is not in the list.
        """
        stems = [PurePosixPath(name).name.partition(".")[0] for name in names]
        known = self.by_stem or self._by_number(stems, location)
        if missing := [name for name, stem in zip(names, stems, strict=True) if stem not in known]:
            raise RebarError(
                f"{self.origin} does not contain {and_others(missing[0], len(missing) - 1, 'image')} of {location}. "
                "Pass a complete list with write_dataset.py --labels FILE.",
                code="labels-incomplete",
            )
        if len(names) < len(known):
            warn(f"{self.origin} has {len(known):,} images, {location} only {len(names):,}; the copy may be incomplete")
        return [known[stem] for stem in stems]

    def _by_number(self, stems: Sequence[str], location: str) -> dict[str, str]:
        if all(_NUMBERED.fullmatch(stem) for stem in stems):
            return {f"ILSVRC2012_val_{number:08}": synset for number, synset in enumerate(self.in_order, start=1)}
        if len(stems) == len(self.in_order):
            return dict(zip(sorted(stems), self.in_order, strict=True))
        raise RebarError(
            f"{self.origin} has {len(self.in_order):,} lines, but {location} has {len(stems):,} images whose names do "
            "not contain their number (as ILSVRC2012_val_00000001.JPEG does). Pass a list of names with "
            "write_dataset.py --labels FILE.",
            code="labels-incomplete",
        )


def find_labels(near: Path, given: str = "") -> ValidationLabels:
    """Read the list at ``given``; without it, search for one in the folder of the images and its parents.

    Raises RebarError if no list is found, or if it cannot be read.
    """
    if given:
        path = Path(given)
        if not path.exists():
            raise RebarError(f"--labels {path}: no such file. Check the path.", code="labels-not-found")
        return _read_devkit(path) if path.is_dir() or ".tar" in path.name else _read_list(path)
    near = near.absolute()
    folders = [near, *near.parents[:PARENTS_SEARCHED]] if near.is_dir() else list(near.parents[:PARENTS_SEARCHED])
    for folder in folders:
        for name in (GROUND_TRUTH, f"data/{GROUND_TRUTH}", *LISTS):
            if (folder / name).is_file():
                return _read_list(folder / name)
        for name in DEVKITS:
            if (folder / name).exists():
                return _read_devkit(folder / name)
    raise labels_not_found(str(near))


def labels_not_found(location: str) -> RebarError:
    """Return the error of a folder with images, but without class folders and a list of labels."""
    return RebarError(
        f"{location}: contains images but no class folders, and no list of labels was found in this folder or the "
        f"{PARENTS_SEARCHED} above it ({', '.join((GROUND_TRUTH, *LISTS, *DEVKITS[:1]))}). If it is the folder of one "
        "class, pass the folder that contains all classes. Otherwise download one of these lists, or write a .beton "
        "with write_dataset.py --labels FILE (formats: docs/datasets.md).",
        code="labels-not-found",
    )


def _invalid(path: str, problem: str, fix: str = "Download it again.") -> RebarError:
    return RebarError(f"{path}: {problem}. {fix}", code="labels-invalid")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(str(path), f"cannot be read as a list of labels: {error}") from None


def _read_list(path: Path) -> ValidationLabels:
    origin = str(path)
    lines = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    if lines and all(line.isdigit() for line in lines):
        return _from_ids(origin, lines, _read_synsets_by_id(origin, path.parent))
    if lines and all(_SYNSET.fullmatch(line) for line in lines):
        return ValidationLabels(origin, {}, tuple(lines))
    by_stem = {}
    for line in lines:
        name, _, rest = line.removeprefix("mv ").replace(",", " ").replace("\t", " ").strip().partition(" ")
        synset = _SYNSET.match(rest.strip())
        if synset and name.lower() != "mkdir":
            by_stem[PurePosixPath(name).name.partition(".")[0]] = synset.group()
    if not by_stem:
        raise _invalid(
            origin,
            "is not a list of labels of the validation images",
            "Each line must be an ID, a synset, or an image and its synset (formats: docs/datasets.md).",
        )
    return ValidationLabels(origin, by_stem, ())


def _from_ids(origin: str, lines: Sequence[str], synsets: dict[int, str]) -> ValidationLabels:
    if unknown := sorted({int(line) for line in lines} - synsets.keys()):
        raise _invalid(origin, f"contains ID {unknown[0]}, which the list of synsets does not")
    return ValidationLabels(origin, {}, tuple(synsets[int(line)] for line in lines))


def _read_synsets_by_id(origin: str, folder: Path) -> dict[int, str]:
    for name in SYNSETS_BY_ID:
        if (path := folder / name).is_file():
            return _parse_meta(str(path), path.read_bytes()) if name.endswith(".mat") else _parse_synsets(path)
    raise RebarError(
        f"{origin}: contains ILSVRC2012_IDs, but no file next to it maps them to synsets. Add meta.mat of the "
        f"development kit, or {SYNSETS_BY_ID[2]} with the synsets in the order of the IDs.",
        code="labels-not-found",
    )


def _parse_synsets(path: Path) -> dict[int, str]:
    """Parse lines of a synset and, optionally, its ID. Without IDs, lines are numbered from 1."""
    found = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        words = line.split()
        if words:
            found[int(words[1]) if len(words) > 1 and words[1].isdigit() else number] = words[0]
    return found


def _parse_meta(origin: str, content: bytes) -> dict[int, str]:
    """Return the synset of each ID in the development kit's ``meta.mat``."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise RebarError(
            f"{origin}: reading it requires SciPy. Run: pip install scipy", code="source-package-missing"
        ) from None
    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        return {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets}
    except Exception as error:  # SciPy raises many exception classes for damaged files
        raise _invalid(origin, f"is not the development kit's meta.mat ({error})") from None


def _read_devkit(path: Path) -> ValidationLabels:
    """Read the labels of a development kit, given as a folder or as the downloaded archive."""
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
        raise _invalid(str(path), f"is not ILSVRC2012's development kit: it contains no {error.args[0]}") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise _invalid(str(path), f"cannot be read ({error})") from None
    lines = contents[GROUND_TRUTH].decode("ascii", "replace").split()
    return _from_ids(str(path), lines, _parse_meta(f"{path}:meta.mat", contents["meta.mat"]))
