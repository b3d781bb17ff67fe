"""Folders of class folders, and how splits are found."""

import os
import pickle
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.sources import ImageFolder
from rebar.sources.layout import filter_split, find_split
from tests.sources.conftest import error_of


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

    def test_hidden_files_and_folders_are_ignored(self, tmp_path: Path) -> None:
        hidden = (".ipynb_checkpoints/0.jpg", "a/.ipynb_checkpoints/0.jpg", "a/._0.jpg", "a/Thumbs.db", "a/.DS_Store")
        source = ImageFolder(make_files(tmp_path, "a/0.jpg", "b/0.jpg", *hidden))
        assert source.class_names == ["a", "b"]
        assert len(source) == 2

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
            ((), "source-not-found", "images: no such folder"),
        ],
    )
    def test_refuses(self, tmp_path: Path, names: tuple[str, ...], code: str, message: str) -> None:
        with pytest.raises(RebarError) as raised:
            ImageFolder(make_files(tmp_path / "images", *names))
        assert raised.value.code == code
        assert message in str(raised.value)

    def test_refuses_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(RebarError) as raised:
            ImageFolder(make_files(tmp_path, "x") / "x")
        assert raised.value.code == "source-not-found"

    def test_refuses_a_cycle_of_links(self, tmp_path: Path) -> None:
        make_files(tmp_path, "a/x.jpg")
        (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
        with pytest.raises(RebarError) as raised:
            ImageFolder(tmp_path)
        assert raised.value.code == "source-unreadable"


class TestFindSplit:
    def test_parent_folder_or_the_split_itself(self, imagenet: Path) -> None:
        assert find_split(imagenet, "val") == imagenet / "val"
        assert find_split(imagenet / "val", "val") == imagenet / "val"

    def test_layout_of_the_ilsvrc_archive(self, tmp_path: Path) -> None:
        (tmp_path / "ILSVRC/Data/CLS-LOC/train").mkdir(parents=True)
        assert find_split(tmp_path, "train") == tmp_path / "ILSVRC/Data/CLS-LOC/train"

    @pytest.mark.parametrize("name", ["validation", "valid", "Val", "VALIDATION"])
    def test_other_names_of_a_split(self, name: str, tmp_path: Path) -> None:
        make_files(tmp_path, f"{name}/a/1.jpg", "Training/a/1.jpg")
        assert find_split(tmp_path, "val") == tmp_path / name
        assert find_split(tmp_path, "train") == tmp_path / "Training"

    def test_refuses_two_folders_of_a_split(self, tmp_path: Path) -> None:
        make_files(tmp_path, "validation/a/1.jpg", "valid/a/1.jpg")
        assert error_of(tmp_path, "val").code == "source-split-ambiguous"
        make_files(tmp_path, "val/a/1.jpg")
        assert find_split(tmp_path, "val") == tmp_path / "val"

    def test_refuses_the_other_split(self, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        assert error_of(tmp_path, "val").code == "source-split-not-found"


class TestFilterSplit:
    def test_matches_complete_words(self) -> None:
        names = ["data/train-0.parquet", "data/validation-0.parquet", "data/test-0.parquet"]
        assert filter_split(names, "val", "here") == names[1:2]
        assert filter_split(names, "train", "here") == names[:1]

    def test_returns_all_names_if_none_mentions_a_split(self) -> None:
        names = [Path("/train/0000.tar"), Path("/train/valley_training-wheels2.tar")]
        assert filter_split(names[:1], "val", "here") == names[:1]
        assert filter_split(names, "train", "here") == names[1:]

    def test_refuses_names_of_other_splits_only(self) -> None:
        with pytest.raises(RebarError) as raised:
            filter_split(["a-test.tar"], "val", "here")
        assert raised.value.code == "source-split-not-found"
