"""Images in tars that are not unpacked."""

import io
import tarfile
from pathlib import Path

import pytest

from rebar.beton.images import omitted_by
from tests.sources.conftest import (
    SYNSETS,
    add_file,
    error_of,
    images_of_folder,
    images_of_source,
    open_location,
    val_images,
)


@pytest.fixture(scope="session")
def archives(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ILSVRC's original archives, and a list of labels."""
    folder = tmp_path_factory.mktemp("archives")
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for synset in reversed(SYNSETS):  # the original is not sorted by synset either
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for path in sorted((imagenet / "train" / synset).iterdir()):
                    add_file(inner, path.name, path.read_bytes())
            add_file(outer, f"{synset}.tar", buffer.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for name, _, content in val_images(imagenet):
            add_file(tar, name, content)
    (folder / "val_labels.txt").write_text("\n".join(synset for _, synset, _ in val_images(imagenet)))
    return folder


@pytest.mark.parametrize("split", ["train", "val"])
def test_open_source_of_ilsvrc_archives(split: str, imagenet: Path, archives: Path) -> None:
    source = open_location(archives, split)
    assert tuple(source.class_names) == SYNSETS
    assert images_of_source(source) == images_of_folder(imagenet / split)


def test_open_source_of_a_tar_of_class_folders(imagenet: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "imagenette.tar", "w") as tar:
        tar.add(imagenet, "imagenette2")
    assert images_of_source(open_location(tmp_path / "imagenette.tar", "val")) == images_of_folder(imagenet / "val")


def test_open_source_of_a_tar_with_long_names(imagenet: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "val_only.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(imagenet / "val", "./" + "deep" * 40)  # needs a header of its own
    assert images_of_source(open_location(tmp_path / "val_only.tar", "val")) == images_of_folder(imagenet / "val")


def test_tar_of_the_other_split_is_refused(imagenet: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(imagenet / "train", "train")
    assert error_of(tmp_path / "a.tar", "val").code == "source-split-not-found"


@pytest.mark.parametrize("keep", [0.4, 0.7])
def test_truncated_tar_is_refused(keep: float, archives: Path, tmp_path: Path) -> None:
    content = (archives / "ILSVRC2012_img_train.tar").read_bytes()
    truncated = tmp_path / "truncated.tar"
    truncated.write_bytes(content[: int(keep * len(content))])
    error = error_of(truncated, "train")
    assert error.code == "tar-invalid"
    assert "truncated.tar" in str(error)


def test_tar_with_duplicate_names_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for content in (b"1", b"2"):
            add_file(tar, "val/n0/a.JPEG", content)
    assert error_of(tmp_path / "a.tar", "val").code == "tar-invalid"


@pytest.mark.parametrize("split", ["train", "val"])
def test_class_named_like_a_split_in_a_tar(split: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar100.tar", "w") as tar:
        for folder in ("train", "val", "test"):
            for name in ("apple", "train/deeper", "val"):
                add_file(tar, f"./cifar100/{folder}/{name}/0.png", f"{folder} {name}".encode())
    source = open_location(tmp_path / "cifar100.tar", split)
    assert source.class_names == ["apple", "train", "val"]
    assert [source.read(index) for index in range(3)] == [
        f"{split} {name}".encode() for name in ("apple", "train/deeper", "val")
    ]
    assert omitted_by(source) == {}


def test_hidden_files_and_links_in_a_tar_are_counted(imagenet: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(imagenet / "val", "val")
        add_file(tar, f"val/{SYNSETS[0]}/._1.JPEG", b"macOS")
        add_file(tar, "val/readme.txt", b"text")
        add_file(tar, "val/stray.JPEG", b"image")
        link = tarfile.TarInfo(f"val/{SYNSETS[0]}/link.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "other.JPEG"
        tar.addfile(link)
    source = open_location(tmp_path / "a.tar", "val")
    assert images_of_source(source) == images_of_folder(imagenet / "val")
    assert omitted_by(source) == {
        "file that is not an image": 1,
        "hidden file or folder": 1,
        "image outside the class folders": 1,
        "link in a tar": 1,
    }


def test_compressed_tar_is_refused(imagenet: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.add(imagenet / "val", "val")
    assert error_of(tmp_path / "a.tgz", "val").code == "tar-compressed"
