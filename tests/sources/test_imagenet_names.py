"""ImageNet-1k has the same class names from the hub as from folders."""

from pathlib import Path

import pytest

from rebar.sources import Request, open_source
from rebar.sources.folder import as_synsets
from tests.sources.conftest import write_parquet

IN_WORDS = ["tench, Tinca tinca", *(f"class {number}" for number in range(1, 999)), "toilet tissue, toilet paper"]


def test_the_synsets_are_whole_and_sorted() -> None:
    synsets = as_synsets(IN_WORDS)
    assert len(set(synsets)) == 1000
    assert synsets == sorted(synsets)
    # some known pairs of label and synset
    known = {0: "n01440764", 134: "n02012849", 207: "n02099601", 281: "n02123045", 517: "n03126707", 999: "n15075141"}
    assert {label: synsets[label] for label in known} == known


def test_other_names_stay() -> None:
    assert as_synsets(IN_WORDS[:999]) == IN_WORDS[:999]
    assert as_synsets(["cat", "dog"]) == ["cat", "dog"]


def test_in_parquet(imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.sources.conftest.FEATURE_NAMES", IN_WORDS)
    _, source = open_source(Request(str(write_parquet(imagenet, tmp_path / "hub")), "val"))
    assert source.class_names == as_synsets(IN_WORDS)
