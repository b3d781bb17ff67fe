"""Folders of class folders, and how splits are found."""

import os
import pickle
import tarfile
from pathlib import Path

import pytest

from rebar.beton.images import omitted_by
from rebar.errors import RebarError
from rebar.sources import ImageFolder
from rebar.sources.layout import filter_split, find_split
from tests.sources.conftest import SYNSETS, error_of, open_location


def make_files(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


class TestImageFolder:
    def test_classes_and_images_are_sorted_by_name(self, tmp_path: Path) -> None:
        source = ImageFolder(make_files(tmp_path, "b/2.png", "b/10.jpg", "a/x.JPEG", "a/notes.txt", "readme.md"))
        assert list(source.class_names) == ["a", "b"]
        assert [source.name(index) for index in range(len(source))] == [
            str(tmp_path / name) for name in ("a/x.JPEG", "b/10.jpg", "b/2.png")
        ]
        assert [source.label(index) for index in range(len(source))] == [0, 1, 1]
        assert source.read(1) == b"b/10.jpg"

    def test_order_is_torchvisions(self, tmp_path: Path) -> None:
        names = ("b/z.jpg", "b/deep/a.jpg", "b/deep/er/0.PNG", "b/a.webp", "a/é.tiff", "a/Z.bmp")
        source = ImageFolder(make_files(tmp_path, *names))
        walks = [sorted(os.walk(tmp_path / name)) for name in source.class_names]  # as torchvision's make_dataset
        expected = [
            (os.path.join(folder, name), label)
            for label, walk in enumerate(walks)
            for folder, _, files in walk
            for name in sorted(files)
        ]
        assert [(source.name(i), source.label(i)) for i in range(len(source))] == expected

    @pytest.mark.parametrize("folder", ["__MACOSX", "@eaDir"])
    def test_folders_of_operating_systems_are_no_classes(self, folder: str, tmp_path: Path) -> None:
        files = (f"{folder}/0.jpg", f"a/{folder}/1.jpg", f"a/x{folder}.jpg")
        source = ImageFolder(make_files(tmp_path, "a/0.jpg", "b/0.jpg", *files))
        assert (list(source.class_names), len(source)) == (["a", "b"], 3)

    def test_hidden_files_and_folders_are_ignored(self, tmp_path: Path) -> None:
        hidden = (".ipynb_checkpoints/0.jpg", "a/.ipynb_checkpoints/0.jpg", "a/._0.jpg", "a/Thumbs.db", "a/.DS_Store")
        source = ImageFolder(make_files(tmp_path, "a/0.jpg", "b/0.jpg", "c.jpg", *hidden))
        assert source.class_names == ["a", "b"]
        assert len(source) == 2
        assert omitted_by(source) == {
            "file that is not an image": 1,
            "hidden file or folder": 4,
            "image outside the class folders": 1,
        }

    def test_names_need_not_be_unicode(self, tmp_path: Path) -> None:
        make_files(tmp_path, "a/ok.jpg")
        with open(os.fsencode(tmp_path) + b"/a/\xff.jpg", "wb") as file:
            file.write(b"image")
        assert ImageFolder(tmp_path).read(1) == b"image"

    def test_pickle_is_compact(self, tmp_path: Path) -> None:
        source = ImageFolder(make_files(tmp_path, *(f"class/{number:08}.jpg" for number in range(1000))))
        content = pickle.dumps(source)
        assert len(content) < 1000 * (12 + 8 + 4) + 1000
        assert pickle.loads(content).name(999) == source.name(999)

    @pytest.mark.parametrize(
        ("names", "code", "message"),
        [
            (("a/x.jpg", "b/x.txt"), "source-empty-class", "class folder b. Remove it"),
            (tuple(f"{n}/x.txt" for n in range(8)), "source-empty-class", "0, 1, 2, 3, 4 and 3 more. Remove them"),
            (("x.txt",), "source-empty", "<class>/<image>"),
            (("x.jpg", "y.jpg"), "source-without-classes", "2 images (such as x.jpg)"),
            (("x.jpg", "y.jpg", "thumbnails/x.jpg"), "source-without-classes", "2 images (such as x.jpg)"),
            ((), "source-not-found", "images: no such folder"),
        ],
    )
    def test_image_folder_refuses_unusable_folders(
        self, tmp_path: Path, names: tuple[str, ...], code: str, message: str
    ) -> None:
        with pytest.raises(RebarError) as raised:
            ImageFolder(make_files(tmp_path / "images", *names))
        assert raised.value.code == code
        assert message in str(raised.value)

    def test_image_folder_refuses_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(RebarError) as raised:
            ImageFolder(make_files(tmp_path, "x") / "x")
        assert raised.value.code == "source-not-found"

    def test_image_folder_refuses_a_cycle_of_links(self, tmp_path: Path) -> None:
        make_files(tmp_path, "a/x.jpg")
        (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
        with pytest.raises(RebarError) as raised:
            ImageFolder(tmp_path)
        assert raised.value.code == "source-unreadable"


class TestFindSplit:
    def test_find_split_accepts_the_parent_folder_or_the_split(self, imagenet: Path) -> None:
        assert find_split(imagenet, "val") == imagenet / "val"
        assert find_split(imagenet / "val", "val") == imagenet / "val"

    def test_find_split_in_the_layout_of_the_ilsvrc_archive(self, tmp_path: Path) -> None:
        (tmp_path / "ILSVRC/Data/CLS-LOC/train").mkdir(parents=True)
        assert find_split(tmp_path, "train") == tmp_path / "ILSVRC/Data/CLS-LOC/train"

    @pytest.mark.parametrize("name", ["validation", "valid", "Val", "VALIDATION"])
    def test_find_split_accepts_other_names_of_a_split(self, name: str, tmp_path: Path) -> None:
        make_files(tmp_path, f"{name}/a/1.jpg", "Training/a/1.jpg")
        assert find_split(tmp_path, "val") == tmp_path / name
        assert find_split(tmp_path, "train") == tmp_path / "Training"

    def test_find_split_refuses_two_folders_of_a_split(self, tmp_path: Path) -> None:
        make_files(tmp_path, "validation/a/1.jpg", "valid/a/1.jpg")
        assert error_of(tmp_path, "val").code == "source-split-ambiguous"
        make_files(tmp_path, "val/a/1.jpg")
        assert find_split(tmp_path, "val") == tmp_path / "val"

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_find_split_with_a_class_named_like_a_split(
        self, split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """CIFAR-100 has a class named train."""
        names = [f"{folder}/{name}/0.jpg" for folder in ("train", "val") for name in ("apple", "train", "whale")]
        make_files(tmp_path / "cifar", *names)
        for location in (tmp_path / "cifar", tmp_path / "cifar" / split):
            source = open_location(location, split)
            assert source.class_names == ["apple", "train", "whale"]
            assert source.name(1) == str(tmp_path / "cifar" / split / "train" / "0.jpg")
            assert "a class named train" in capsys.readouterr().err

    def test_find_split_refuses_a_folder_that_may_be_split_or_class(self, tmp_path: Path) -> None:
        make_files(tmp_path / "data", "apple/0.jpg", "train/0.jpg", "whale/0.jpg")
        for split in ("train", "val"):
            assert error_of(tmp_path / "data", split).code == "source-split-ambiguous"

    def test_flat_validation_images_next_to_class_folders_are_a_split(self, tmp_path: Path) -> None:
        make_files(tmp_path, "train/a/0.jpg", "val/0.jpg", "test/0.jpg", "devkit/readme.txt")
        assert find_split(tmp_path, "val") == tmp_path / "val"
        assert find_split(tmp_path, "train") == tmp_path / "train"

    def test_find_split_refuses_the_other_split(self, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        assert error_of(tmp_path, "val").code == "source-split-not-found"


class TestTinyImageNet:
    """Class folders with subfolders in train/, and all validation images in val/images/ with a list of labels."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        names = [f"train/{synset}/images/{synset}_{number}.JPEG" for synset in SYNSETS for number in range(2)]
        boxes = [f"train/{synset}/{synset}_boxes.txt" for synset in SYNSETS]
        folder = make_files(tmp_path / "tiny-imagenet-200", *names, *boxes, "test/images/test_0.JPEG")
        make_files(folder, *(f"val/images/val_{number}.JPEG" for number in range(6)))
        lines = [f"val_{number}.JPEG\t{SYNSETS[number % 3]}\t0\t32\t44\t62\n" for number in range(6)]
        (folder / "val" / "val_annotations.txt").write_text("".join(lines))
        return folder

    @pytest.fixture(params=["folder", "tar"])
    def location(self, request: pytest.FixtureRequest, folder: Path) -> Path:
        if request.param == "folder":
            return folder
        with tarfile.open(folder.with_suffix(".tar"), "w") as tar:
            tar.add(folder, folder.name)
        (folder / "val" / "val_annotations.txt").rename(folder.with_name("val_annotations.txt"))
        return folder.with_suffix(".tar")

    def test_train_split_of_tiny_imagenet_has_class_folders(self, location: Path) -> None:
        source = open_location(location, "train")
        assert tuple(source.class_names) == SYNSETS
        assert [source.label(index) for index in range(6)] == [0, 0, 1, 1, 2, 2]
        assert omitted_by(source)["file that is not an image"] >= 3

    def test_val_split_of_tiny_imagenet_has_the_labels_of_its_list(self, location: Path) -> None:
        source = open_location(location, "val")
        assert tuple(source.class_names) == SYNSETS
        assert [source.label(index) for index in range(6)] == [0, 0, 1, 1, 2, 2]
        assert source.name(1).endswith("val/images/val_3.JPEG")

    def test_val_split_of_tiny_imagenet_without_a_list_is_refused(self, location: Path, tmp_path: Path) -> None:
        for path in tmp_path.rglob("val_annotations.txt"):
            path.unlink()
        assert error_of(location, "val").code == "labels-not-found"


def test_image_folder_with_a_single_class_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(open_location(make_files(tmp_path, "imagenette2/0.jpg", "imagenette2/1.jpg"), "val")) == 2
    assert "only one class, imagenette2" in capsys.readouterr().err


class TestFilterSplit:
    def test_filter_split_matches_complete_words(self) -> None:
        names = ["data/train-0.parquet", "data/validation-0.parquet", "data/test-0.parquet"]
        assert filter_split(names, "val", "here") == names[1:2]
        assert filter_split(names, "train", "here") == names[:1]

    def test_filter_split_returns_all_names_if_none_mentions_a_split(self) -> None:
        names = [Path("/train/0000.tar"), Path("/train/valley_training-wheels2.tar")]
        assert filter_split(names[:1], "val", "here") == names[:1]
        assert filter_split(names, "train", "here") == names[1:]

    def test_filter_split_refuses_names_of_other_splits_only(self) -> None:
        with pytest.raises(RebarError) as raised:
            filter_split(["a-test.tar"], "val", "here")
        assert raised.value.code == "source-split-not-found"
