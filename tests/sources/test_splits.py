"""Which folders and files are those of a split."""

from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.sources.folder import find_split, of_split


class TestFindSplit:
    def test_the_folder_above_or_the_splits_own(self, imagenet: Path) -> None:
        assert find_split(imagenet, "val") == imagenet / "val"
        assert find_split(imagenet / "val", "val") == imagenet / "val"

    def test_the_layout_of_the_ilsvrc_archive(self, tmp_path: Path) -> None:
        (tmp_path / "ILSVRC/Data/CLS-LOC/train").mkdir(parents=True)
        assert find_split(tmp_path, "train") == tmp_path / "ILSVRC/Data/CLS-LOC/train"

    def test_the_other_split_is_no_class(self, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        with pytest.raises(RebarError, match=r"there is train/ in it, but no val/"):
            find_split(tmp_path, "val")


class TestOfSplit:
    def test_by_whole_words(self) -> None:
        names = ["data/train-0.parquet", "data/validation-0.parquet", "data/test-0.parquet"]
        assert of_split(names, "val", "here") == names[1:2]
        assert of_split(names, "train", "here") == names[:1]

    def test_names_that_speak_of_none(self) -> None:
        names = [Path("/train/0000.tar"), Path("/train/valley_training-wheels2.tar")]
        assert of_split(names[:1], "val", "here") == names[:1]
        assert of_split(names, "train", "here") == names[1:]

    def test_of_the_other_only(self) -> None:
        with pytest.raises(RebarError, match="here: has files of another split, such as a-test"):
            of_split(["a-test.tar"], "val", "here")
