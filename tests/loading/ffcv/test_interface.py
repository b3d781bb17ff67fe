"""Every argument and attribute of FFCV's Loader works in Rebar's, or is rejected with an error that names it."""

import ast
import inspect
import textwrap
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ffcv")
import ffcv.loader
from ffcv.fields.decoders import CenterCropRGBImageDecoder
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import ToTensor

from rebar.beton import BetonFile
from rebar.errors import RebarError
from rebar.loading import CenterCrop, Loader, LoaderAttributeError, OrderOption

SETTABLE = {
    "batch_size": 5,
    "batches_ahead": 0,
    "drop_last": False,
    "indices": range(30, 70),
    "next_epoch": 2,
    "num_workers": 1,
    "recompile": True,
    "seed": 7,
}
READ_ONLY = {"distributed", "fname"}
UNSUPPORTED = {
    "_args",
    "code",
    "field_name_to_f_ix",
    "filter",
    "first_traversal_order",
    "generate_code",
    "graph",
    "memory_manager",
    "next_traversal_order",
    "pipeline_specs",
    "pipelines",
    "reader",
    "traversal_order",
}
INVALID_ARGUMENTS: dict[str, list[Any]] = {
    "fname": ["missing.beton"],
    "batch_size": [0, "8", 1.5, None],
    "num_workers": ["8", None],
    "os_cache": ["yes", 2],
    "order": ["shuffled", 3.5, None],
    "distributed": ["yes", True],  # there is no process group
    "seed": ["7", 1.5],
    "indices": [[], [0, 103], [True], [0.5], "all", [[1, 2]]],
    "pipelines": [{"imgae": []}, {"imgae": None}, {"x": PipelineSpec("imgae")}, {"image": 3}, ["image"]],
    "custom_fields": [{"imgae": object}, ["image"]],
    "drop_last": ["no", 2],
    "batches_ahead": [-1, "3"],
    "recompile": ["no"],
}


def make_loader(beton: BetonFile, **changes: Any) -> Loader:
    chosen = {"batch_size": 8, "num_workers": 2, "order": OrderOption.RANDOM, "resolution": 8, **changes}
    return Loader(beton.path, cropper=CenterCrop(), **chosen)


def labels(loader: Loader) -> list[list[int]]:
    return [batch.labels.tolist() for batch in loader]


def attributes_of_ffcvs_loader() -> set[str]:
    """Return the names that FFCV's Loader assigns to ``self``, and its methods."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(ffcv.loader.Loader)))
    assigned = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return assigned | {name for name in vars(ffcv.loader.Loader) if not name.startswith("__")}


def test_these_tests_cover_every_argument_and_attribute_of_ffcvs_loader() -> None:
    assert attributes_of_ffcvs_loader() == SETTABLE.keys() | READ_ONLY | UNSUPPORTED
    theirs, ours = (list(inspect.signature(kind).parameters) for kind in (ffcv.loader.Loader, Loader))
    assert ours[: len(theirs)] == theirs == list(INVALID_ARGUMENTS)


# ------------------------------------------------------------------ attributes


@pytest.mark.parametrize("name", SETTABLE)
def test_attribute_set_between_epochs_acts_like_the_argument(name: str, numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    first = labels(loader)
    setattr(loader, name, SETTABLE[name])
    if name == "next_epoch":
        expected = make_loader(numbers)
        assert labels(expected) == first
        labels(expected)
    else:
        expected = make_loader(numbers, **{name: SETTABLE[name]})
        assert np.array_equal(getattr(loader, name), getattr(expected, name))
        labels(expected)
    assert len(loader) == len(expected)
    assert labels(loader) == labels(expected)


def test_attribute_set_within_an_epoch_takes_effect_at_the_next(numbers: BetonFile) -> None:
    loader, expected = make_loader(numbers), labels(make_loader(numbers))
    epoch = iter(loader)
    found = [next(epoch).labels.tolist()]
    loader.indices, loader.seed, loader.batch_size = range(50), 3, 4
    state = loader.state_dict()
    assert found + [batch.labels.tolist() for batch in epoch] == expected
    resumed = make_loader(numbers)
    resumed.load_state_dict(state)
    assert labels(resumed) == expected[1:]
    assert {len(batch) for batch in labels(loader)} == {4}
    assert len(loader) == 12


@pytest.mark.parametrize("name", [*sorted(READ_ONLY | UNSUPPORTED), "indicies", "_backnd"])
def test_attribute_that_cannot_be_set_is_rejected(name: str, numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    with pytest.raises(LoaderAttributeError, match=name) as error:
        setattr(loader, name, 1)
    assert error.value.code == "loader-unsupported-attribute"
    if name not in READ_ONLY:
        assert not hasattr(loader, name)
        with pytest.raises(LoaderAttributeError, match=name) as error:
            getattr(loader, name)
        assert error.value.code == "loader-unsupported-attribute"


def test_read_only_attributes_have_the_values_of_the_arguments(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    assert (loader.fname, loader.distributed) == (numbers.path, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in INVALID_ARGUMENTS.items() for value in values if name in SETTABLE],
)
def test_invalid_value_of_an_attribute_is_rejected_and_not_stored(name: str, value: Any, numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    before = getattr(loader, name)
    if value is None and name == "indices":
        return
    with pytest.raises(RebarError, match=name) as error:
        setattr(loader, name, value)
    assert error.value.code == "loader-invalid-argument"
    assert np.array_equal(getattr(loader, name), before)


def test_too_few_indices_are_rejected_at_the_next_epoch(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    loader.indices = range(7)
    with pytest.raises(RebarError) as error:
        iter(loader)
    assert error.value.code == "loader-too-few-samples"


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in INVALID_ARGUMENTS.items() for value in values],
    ids=str,
)
def test_invalid_argument_is_rejected(
    name: str, value: Any, numbers: BetonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    image = [CenterCropRGBImageDecoder((8, 8), 1), ToTensor()]
    arguments = {"fname": numbers.path, "batch_size": 8, "pipelines": {"image": image}, name: value}
    with pytest.raises(RebarError) as error:
        Loader(**arguments)
    codes = {"fname": "beton-not-found", "distributed": "loader-no-process-group"}
    expected = "loader-invalid-argument" if value == "yes" else codes.get(name, "loader-invalid-argument")
    assert error.value.code == expected
    assert name in str(error.value) or name == "fname" or value == {"image": 3}


def test_misspelt_field_is_rejected_with_the_fields_of_the_file(numbers: BetonFile) -> None:
    with pytest.raises(RebarError, match=r"pipelines: .* no field 'imgae'.*image, label") as error:
        Loader(numbers.path, 8, pipelines={"imgae": [CenterCropRGBImageDecoder((8, 8), 1)]})
    assert error.value.code == "loader-invalid-argument"


def test_custom_fields_next_to_a_cropper_are_rejected(numbers: BetonFile) -> None:
    with pytest.raises(RebarError, match="custom_fields") as error:
        make_loader(numbers, custom_fields={"image": object})
    assert error.value.code == "loader-invalid-argument"
