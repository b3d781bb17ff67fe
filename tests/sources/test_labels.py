"""Lists of labels of ILSVRC's validation images, and ImageNet-1k's class names."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from rebar.errors import RebarError
from rebar.sources.labels import find_labels, to_synsets
from tests.sources.conftest import (
    SYNSETS,
    error_of,
    images_of_folder,
    images_of_source,
    open_location,
    val_images,
    write_parquet,
)

IN_WORDS = ["tench, Tinca tinca", *(f"class {number}" for number in range(1, 999)), "toilet tissue, toilet paper"]


def lists_of_labels(imagenet: Path) -> dict[str, list[str]]:
    """Return the lines of each format; formats with file names are in another order than the images."""
    stems = [(name.removesuffix(".JPEG"), synset) for name, synset, _ in val_images(imagenet)]
    return {
        "kaggle": ["ImageId,PredictionString", *(f"{s},{n} 1 2 3 4 {n} 5 6 7 8" for s, n in reversed(stems))],
        "synsets": [synset for _, synset in stems],
        "pairs": [f"{stem}.JPEG {synset}" for stem, synset in reversed(stems)],
        "valprep": [*(f"mkdir -p {n}" for n in SYNSETS), *(f"mv {s}.JPEG {n}/" for s, n in reversed(stems))],
    }


@pytest.fixture(scope="session")
def devkit(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development kit, with IDs that are not in the order of the synsets, as in the original."""
    savemat = pytest.importorskip("scipy.io").savemat
    data = tmp_path_factory.mktemp("devkit") / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    ids = {SYNSETS[1]: 1, SYNSETS[2]: 2, SYNSETS[0]: 3}
    fields = np.dtype([("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")])
    entries = [(number, synset, "a thing", 0) for synset, number in ids.items()]
    entries.append((4, "n00001740", "entity", 2))  # an inner node of the hierarchy, as in the original
    savemat(str(data / "meta.mat"), {"synsets": np.array(entries, fields)})
    lines = [f"{ids[synset]}\n" for _, synset, _ in val_images(imagenet)]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(lines))
    return data.parent


@pytest.fixture
def flat(imagenet: Path, tmp_path: Path) -> Path:
    """The validation images in one folder, val/."""
    folder = tmp_path / "flat" / "val"
    folder.mkdir(parents=True)
    for name, _, content in val_images(imagenet):
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("form", ["kaggle", "synsets", "pairs", "valprep"])
def test_find_labels_reads_every_format(form: str, imagenet: Path, tmp_path: Path) -> None:
    images = val_images(imagenet)
    (tmp_path / "any.txt").write_text("\n".join(lists_of_labels(imagenet)[form]) + "\n")
    labels = find_labels(tmp_path, str(tmp_path / "any.txt"))
    assert labels.class_names == list(SYNSETS)
    assert labels.look_up([name for name, _, _ in images], "val") == [synset for _, synset, _ in images]


@pytest.mark.parametrize("synsets", ["n02119789\nn03000684\nn01440764", "n01440764 3 fish\nn02119789 1\nn03000684 2"])
def test_find_labels_maps_ids_with_a_text_file_of_synsets(
    synsets: str, imagenet: Path, devkit: Path, tmp_path: Path
) -> None:
    images = val_images(imagenet)
    shutil.copy(devkit / "data" / "ILSVRC2012_validation_ground_truth.txt", tmp_path)
    (tmp_path / "synsets.txt").write_text(synsets)
    labels = find_labels(tmp_path / "Data" / "val")
    assert labels.look_up([name for name, _, _ in images], "val") == [synset for _, synset, _ in images]


@pytest.mark.parametrize("packed", [False, True])
def test_find_labels_reads_the_development_kit(packed: bool, flat: Path, imagenet: Path, devkit: Path) -> None:
    if packed:
        shutil.make_archive(str(flat.parent / "ILSVRC2012_devkit_t12"), "gztar", devkit.parent, devkit.name)
    else:
        shutil.copytree(devkit, flat.parent / devkit.name)
    source = open_location(flat, "val")
    assert tuple(source.class_names) == SYNSETS
    assert images_of_source(source) == images_of_folder(imagenet / "val")


def test_flat_folder_with_labels_option(imagenet: Path, flat: Path, tmp_path: Path) -> None:
    (tmp_path / "any.sh").write_text("\n".join(lists_of_labels(imagenet)["valprep"]))
    source = open_location(flat.parent, "val", labels=tmp_path / "any.sh")
    assert images_of_source(source) == images_of_folder(imagenet / "val")


def test_flat_folder_in_kaggles_layout(imagenet: Path, flat: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    folder.mkdir(parents=True)
    flat.rename(folder / "val")
    (tmp_path / "kaggle" / "LOC_val_solution.csv").write_text("\n".join(lists_of_labels(imagenet)["kaggle"]))
    source = open_location(tmp_path / "kaggle", "val")
    assert [source.label(index) for index in range(9)] == [0] * 3 + [1] * 3 + [2] * 3


def test_flat_folder_without_a_list_is_refused(flat: Path) -> None:
    error = error_of(flat, "val")
    assert error.code == "labels-not-found"
    assert "LOC_val_solution.csv" in str(error)


def test_list_without_an_image_is_refused(flat: Path) -> None:
    (flat.parent / "val_labels.txt").write_text("ILSVRC2012_val_00000001.JPEG n01440764\n")
    error = error_of(flat, "val")
    assert error.code == "labels-incomplete"
    assert "ILSVRC2012_val_00000002.JPEG and 7 more" in str(error)


def test_list_with_more_images_than_the_folder_warns(
    imagenet: Path, flat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (flat.parent / "val_labels.txt").write_text("\n".join(synset for _, synset, _ in val_images(imagenet)))
    (flat / "ILSVRC2012_val_00000004.JPEG").unlink()
    source = open_location(flat, "val")
    assert "has 9 images" in capsys.readouterr().err
    assert [source.label(index) for index in range(len(source))] == [0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("val_labels.txt", "no labels at all\n", "labels-invalid"),
        ("val_labels.txt", "n01440764\nn01440764\n", "labels-incomplete"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n2\n", "labels-not-found"),
        ("ILSVRC2012_devkit_t12.tar.gz", "not a tar", "labels-invalid"),
    ],
)
def test_find_labels_refuses_invalid_lists(name: str, content: str, code: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RebarError) as raised:
        find_labels(tmp_path).look_up(["a.JPEG"], "val")
    assert raised.value.code == code


def test_to_synsets_of_imagenet_1k() -> None:
    synsets = to_synsets(IN_WORDS)
    assert len(set(synsets)) == 1000
    assert synsets == sorted(synsets)
    known = {0: "n01440764", 134: "n02012849", 207: "n02099601", 281: "n02123045", 517: "n03126707", 999: "n15075141"}
    assert {label: synsets[label] for label in known} == known


def test_to_synsets_returns_other_names_unchanged() -> None:
    assert to_synsets(IN_WORDS[:999]) == IN_WORDS[:999]
    assert to_synsets(["cat", "dog"]) == ["cat", "dog"]


def test_parquet_with_imagenets_names_in_words_gets_synsets(imagenet: Path, tmp_path: Path) -> None:
    source = open_location(write_parquet(imagenet, tmp_path / "hub", IN_WORDS), "val")
    assert source.class_names == to_synsets(IN_WORDS)
