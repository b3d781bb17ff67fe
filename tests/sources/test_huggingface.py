"""Datasets of the Hugging Face Hub, written by write_dataset.py from a local server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.sources.huggingface import HubAddress
from tests.sources.conftest import SYNSETS, Write, images_of_beton, images_of_folder, write_error, write_parquet
from tests.storage.hub_server import TOKEN, Hub, hub_server

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(imagenet: Path, tmp_path: Path) -> Iterator[Hub]:
    """imagenet-1k, gated; and a dataset with Parquet files per configuration on the branch of conversions."""
    folder = write_parquet(imagenet, tmp_path / "hub")
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "README.md").write_text("no Parquet here")
    converted = tmp_path / "converted"
    for config, number in (("small", 0), ("large", 1)):
        (converted / config / "train").mkdir(parents=True)
        source = folder / "data" / f"train-{number:05}-of-00002.parquet"
        (converted / config / "train" / "0000.parquet").write_bytes(source.read_bytes())
    datasets = {
        "ILSVRC/imagenet-1k": {"main": folder},
        "someone/converted": {"main": tmp_path / "original", "refs/convert/parquet": converted},
        "someone/empty": {"main": tmp_path / "original"},
    }
    with hub_server(datasets, gated={"ILSVRC/imagenet-1k"}) as server:
        yield server


def variables(hub: Hub, folder: Path, token: str = "") -> dict[str, object]:
    named = {"HF_ENDPOINT": hub.url, "HF_HOME": folder / "hf", "HF_HUB_DISABLE_TELEMETRY": 1}
    return {**named, "HF_TOKEN": token}


def test_gated_dataset_is_written_with_a_token(hub: Hub, imagenet: Path, tmp_path: Path, write: Write) -> None:
    file = write("hf:imagenet-1k", "val", **variables(hub, tmp_path, TOKEN))
    assert file.class_names == SYNSETS
    assert images_of_beton(file) == images_of_folder(imagenet / "val")
    assert sorted(hub.downloads) == [f"data/validation-0000{number}-of-00002.parquet" for number in range(2)]


def test_subset_downloads_only_the_files_it_needs(hub: Hub, tmp_path: Path, write: Write) -> None:
    named = variables(hub, tmp_path, TOKEN)
    assert len(write("hf:imagenet-1k", "train", "--subset", 3, **named)) == 3
    assert len(hub.downloads) == 1
    assert len(write("hf:imagenet-1k", "train", **named)) == 15
    assert len(hub.downloads) == 2  # the cached file is not downloaded again


@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_hub_without_access_reports_four_steps(token: str, hub: Hub, tmp_path: Path) -> None:
    message = write_error("hf:imagenet-1k", "val", tmp_path / "val.beton", **variables(hub, tmp_path, token))
    assert "[hub-access-denied]" in message
    assert ("the token in HF_TOKEN was rejected" in message) == bool(token)
    assert [line[:4] for line in message.splitlines()[1:5]] == ["  1.", "  2.", "  3.", "  4."]
    assert f"{hub.url}/datasets/ILSVRC/imagenet-1k" in message


def test_converted_parquet_and_configurations(hub: Hub, tmp_path: Path, write: Write) -> None:
    named = variables(hub, tmp_path)
    assert len(write("hf:someone/converted:large", "train", **named)) == 7
    target = tmp_path / "train.beton"
    for address in ("hf:someone/converted", "hf:someone/converted:tiny"):
        message = write_error(address, "train", target, **named)
        assert "large, small" in message
        assert "[hub-config-invalid]" in message


def test_hub_reports_a_missing_dataset_or_parquet_files(hub: Hub, tmp_path: Path) -> None:
    named, target = variables(hub, tmp_path), tmp_path / "train.beton"
    assert "[hub-no-parquet]" in write_error("hf:someone/empty", "train", target, **named)
    assert "[hub-not-found]" in write_error("hf:someone/absent", "train", target, **named)


def test_unreachable_hub_is_reported_in_one_line(hub: Hub, tmp_path: Path) -> None:
    named = {**variables(hub, tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    message = write_error("hf:a/b", "val", tmp_path / "val.beton", **named)
    assert "http://127.0.0.1:9" in message
    assert "[hub-unreachable]" in message
    assert len(message.strip().splitlines()) == 1


def test_hub_address_parse() -> None:
    assert HubAddress.parse("hf:imagenet-1k") == HubAddress("ILSVRC/imagenet-1k", None, None)
    assert HubAddress.parse("hf:a/b:full_size@v1.0") == HubAddress("a/b", "full_size", "v1.0")
    assert HubAddress.parse("a/b") == HubAddress("a/b", None, None)  # with --dataset hf
    with pytest.raises(RebarError) as raised:
        HubAddress.parse("hf:a/b/c")
    assert raised.value.code == "hub-address-invalid"
