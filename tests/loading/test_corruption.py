"""Corrupt samples are refused, or replaced, counted and warned of; the same ones on every path."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rebar.beton import BetonFile
from rebar.beton.sidecar import sidecar_path
from rebar.errors import RebarError
from rebar.loading import CenterCrop, CorruptSampleError, CorruptSampleWarning, Loader
from rebar.loading import decode as policy
from tests.loading.conftest import WriteBeton, label_of, number_of

BAD = (3, 19, 20, 37)


def ruin(beton: BetonFile, samples: tuple[int, ...]) -> None:
    with beton.path.open("r+b") as file:
        for sample in samples:
            file.seek(int(beton.offsets[sample]))
            file.write(bytes(int(beton.sizes[sample])))


@pytest.fixture
def ruined(write_numbers: WriteBeton) -> Path:
    """Forty JPEGs, four of them zeros."""
    beton = write_numbers(40, "jpg")
    ruin(beton, BAD)
    return beton.path


def contents(loader: Loader) -> list[tuple[list[int], list[int]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CorruptSampleWarning)
        return [(number_of(images.numpy()).tolist(), labels.tolist()) for images, labels in loader]


def make_loader(path: Path, **changes: Any) -> Loader:
    chosen = {"num_workers": 2, "cropper": CenterCrop(), "resolution": 16, "on_error": "replace", **changes}
    return Loader(path, chosen.pop("batch_size", 8), **chosen)


def test_a_good_sample_takes_the_place_with_its_own_label(ruined: Path) -> None:
    loader = make_loader(ruined)
    batches = contents(loader)
    assert all([label_of(number) for number in numbers] == labels for numbers, labels in batches)
    numbers = np.concatenate([found for found, _ in batches])
    changed = np.flatnonzero(numbers != np.arange(40))
    assert tuple(changed) == BAD
    assert not set(numbers[changed]) & set(BAD)
    assert sorted(loader.corrupt_samples) == list(BAD)


def test_the_substitute_depends_on_seed_epoch_and_sample_only(ruined: Path) -> None:
    usual = [number for numbers, _ in contents(make_loader(ruined)) for number in numbers]
    for changes in ({"num_workers": 1}, {"num_workers": 5}, {"batch_size": 4}, {"batches_ahead": 0}):
        assert [number for numbers, _ in contents(make_loader(ruined, **changes)) for number in numbers] == usual
    ranks = [contents(make_loader(ruined, batch_size=4, rank=rank, world_size=2)) for rank in range(2)]
    assert [n for parts in zip(*ranks, strict=True) for numbers, _ in parts for n in numbers] == usual
    other_epoch = make_loader(ruined)
    other_epoch.next_epoch = 1
    assert [number for numbers, _ in contents(other_epoch) for number in numbers] != usual


def test_each_is_warned_of_once_and_named(ruined: Path) -> None:
    loader = make_loader(ruined)
    with pytest.warns(CorruptSampleWarning) as said:
        assert len(list(loader)) + len(list(loader)) == 10
    assert len(said) == len(BAD)
    assert f"{ruined}: the image of sample 3, at byte " in str(said[0].message)


def test_substitutes_come_from_the_chosen_samples(ruined: Path) -> None:
    chosen = [1, 2, 3, 4]
    loader = make_loader(ruined, batch_size=4, indices=chosen)
    ((numbers, labels),) = contents(loader)
    assert set(numbers) == {1, 2, 4}
    assert labels == [label_of(number) for number in numbers]


def test_where_no_substitute_is_good_the_sample_is_refused(ruined: Path) -> None:
    loader = make_loader(ruined, batch_size=2, indices=[19, 20])
    with pytest.raises(CorruptSampleError, match="the image of sample 19") as refused:
        list(loader)
    assert refused.value.index == 19
    assert policy.ATTEMPTS > 1


def test_training_may_go_on_after_an_error(ruined: Path) -> None:
    loader = make_loader(ruined, on_error="raise")
    iterator = iter(loader)
    with pytest.raises(CorruptSampleError, match="sample 3,"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)
    assert loader.corrupt_samples == {}


def test_an_unknown_policy_is_refused(ruined: Path) -> None:
    with pytest.raises(RebarError, match="on_error: 'skip' is none of raise, replace"):
        make_loader(ruined, on_error="skip")


def test_the_message_says_whether_the_file_was_damaged_since(ruined: Path, write_numbers: WriteBeton) -> None:
    """By the checksum in the sidecar of the page that the image lies on."""
    with pytest.raises(CorruptSampleError, match=r"does not match the sidecar's checksum.*copy it again"):
        list(make_loader(ruined, on_error="raise"))
    sidecar_path(ruined).unlink()
    with pytest.raises(CorruptSampleError, match="Copy the file again or write it anew"):
        list(make_loader(ruined, on_error="raise"))
