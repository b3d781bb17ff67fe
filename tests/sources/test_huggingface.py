"""Data sets of the hub, through the command line and over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.sources.huggingface import HubAddress
from tests.sources.conftest import SYNSETS, Write, images_of_file, images_of_folder, refusal, write_parquet
from tests.sources.hub import Hub, serving

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(imagenet: Path, tmp_path: Path) -> Iterator[Hub]:
    """imagenet-1k, gated; and a data set whose Parquet files lie on the branch of converted ones, by configuration."""
    folder = write_parquet(imagenet, tmp_path / "hub")
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "README.md").write_text("no Parquet here")
    converted = tmp_path / "converted"
    for config, number in (("small", 0), ("large", 1)):
        (converted / config / "train").mkdir(parents=True)
        source = folder / "data" / f"train-{number:05}-of-00002.parquet"
        (converted / config / "train" / "0000.parquet").write_bytes(source.read_bytes())
    data_sets = {
        "ILSVRC/imagenet-1k": {"main": folder},
        "someone/converted": {"main": tmp_path / "original", "refs/convert/parquet": converted},
        "someone/empty": {"main": tmp_path / "original"},
    }
    with serving(data_sets, gated={"ILSVRC/imagenet-1k"}) as server:
        yield server


def variables(hub: Hub, folder: Path, token: str = "") -> dict[str, object]:
    named = {"HF_ENDPOINT": hub.address, "HF_HOME": folder / "hf", "HF_HUB_DISABLE_TELEMETRY": 1}
    return {**named, "HF_TOKEN": token}


def test_a_gated_data_set_with_a_token(hub: Hub, imagenet: Path, tmp_path: Path, write: Write) -> None:
    file = write("hf:imagenet-1k", "val", **variables(hub, tmp_path, hub.token))
    assert file.class_names == SYNSETS
    assert images_of_file(file) == images_of_folder(imagenet / "val")
    assert sorted(hub.downloads) == [f"data/validation-0000{number}-of-00002.parquet" for number in range(2)]


def test_a_subset_downloads_no_more_than_it_needs(hub: Hub, tmp_path: Path, write: Write) -> None:
    named = variables(hub, tmp_path, hub.token)
    assert len(write("hf:imagenet-1k", "train", "--subset", 3, **named)) == 3
    assert len(hub.downloads) == 1
    assert len(write("hf:imagenet-1k", "train", **named)) == 15
    assert len(hub.downloads) == 2  # what was there was not downloaded again


@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_without_access_the_four_steps_are_told(token: str, hub: Hub, tmp_path: Path) -> None:
    message = refusal("hf:imagenet-1k", "val", tmp_path / "val.beton", **variables(hub, tmp_path, token))
    assert ("the token in use was refused" in message) == bool(token)
    for step in ("1. make an account", "2. log in, open", "3. make a token", "4. export HF_TOKEN"):
        assert step in message
    assert f"{hub.address}/datasets/ILSVRC/imagenet-1k" in message


def test_converted_parquet_and_configurations(hub: Hub, tmp_path: Path, write: Write) -> None:
    named = variables(hub, tmp_path)
    assert len(write("hf:someone/converted:large", "train", **named)) == 7
    target = tmp_path / "train.beton"
    assert "has the configurations large, small" in refusal("hf:someone/converted", "train", target, **named)
    assert "no configuration tiny, only" in refusal("hf:someone/converted:tiny", "train", target, **named)


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    named, target = variables(hub, tmp_path), tmp_path / "train.beton"
    assert "has no Parquet files" in refusal("hf:someone/empty", "train", target, **named)
    assert "the hub has no such data set" in refusal("hf:someone/absent", "train", target, **named)


@pytest.mark.slow  # the hub's client tries again for a while
def test_a_hub_that_does_not_answer(hub: Hub, tmp_path: Path) -> None:
    named = {**variables(hub, tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "http://127.0.0.1:9 cannot be asked" in refusal("hf:a/b", "val", tmp_path / "val.beton", **named)


def test_addresses() -> None:
    assert HubAddress.parse("hf:imagenet-1k") == HubAddress("ILSVRC/imagenet-1k", None, None)
    assert HubAddress.parse("hf:a/b:full_size@v1.0") == HubAddress("a/b", "full_size", "v1.0")
    assert HubAddress.parse("a/b") == HubAddress("a/b", None, None)  # with --dataset hf
    with pytest.raises(RebarError, match="expected hf:imagenet-1k"):
        HubAddress.parse("hf:a/b/c")
