"""The loaders of the ImageNet recipe, channel statistics, and resolutions compared with ffcv-imagenet's formula."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rebar.beton import BetonFile, ImagePolicy, write_beton
from rebar.beton.selection import SUBSETS, Selection
from rebar.beton.verify import measure_stats
from rebar.errors import RebarError
from rebar.loading.imagenet import ChannelStatistics, build_train_loader, build_val_loader, read_statistics
from rebar.loading.options import DataConfig, ResolutionConfig
from rebar.loading.prefetch import IMAGENET_MEAN, IMAGENET_STD
from rebar.sources import ImageFolder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of 9 and 3 images."""
    cv2 = pytest.importorskip("cv2")
    for number in range(12):
        folder = tmp_path / "tree" / ("a" if number < 9 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), np.full((16, 16, 3), 20 * number, np.uint8))
    return tmp_path / "tree"


@pytest.mark.parametrize("is_source", [True, False])
def test_data_subset_is_the_same_for_a_source_and_for_a_beton(
    is_source: bool, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REBAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SUBSETS, "tiny", 4)
    dataset = tree
    if not is_source:
        dataset = tmp_path / "all.beton"
        source, order = Selection().apply(ImageFolder(tree))
        write_beton(source, dataset, policy=ImagePolicy(), order=order, progress=False)
    config = DataConfig(train_dataset=str(dataset), val_dataset=str(dataset), num_workers=1, data_subset="tiny")
    train = build_train_loader(config, batch_size=2, seed=0, distributed=False, pin_memory=False)
    val = build_val_loader(config, batch_size=2, crop_ratio=1, distributed=False, pin_memory=False)
    for loader in (train, val):
        labels = np.concatenate([labels.numpy().ravel() for _, labels in loader.epoch(0, 16)])
        assert np.bincount(labels).tolist() == [2, 2]
    assert len(val.beton) == (4 if is_source else 12)


# ------------------------------------------------------------------ channel statistics


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_read_statistics_without_a_file_returns_imagenet_values() -> None:
    assert read_statistics("") == ChannelStatistics(IMAGENET_MEAN, IMAGENET_STD)


def test_read_statistics_accepts_both_scales(tmp_path: Path) -> None:
    unit = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "num_samples": 3}
    bytes_ = {name: [value * 255 for value in unit[name]] for name in ("mean", "std")}  # type: ignore[union-attr]
    from_unit, from_bytes = (read_statistics(write_json(tmp_path / "s.json", content)) for content in (unit, bytes_))
    assert from_unit == ChannelStatistics((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert (*from_bytes.mean, *from_bytes.std) == pytest.approx((*from_unit.mean, *from_unit.std))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"mean": [0.5, 0.4, 0.3]}, "'std'"),
        ({"mean": [0.5, 0.4], "std": [1, 1, 1]}, "'mean'"),
        ({"mean": [0.5, 0.4, "x"], "std": [1, 1, 1]}, "'mean'"),
        ([1, 2], "'mean'"),
        ({"mean": [0.5, 0.4, 0.3], "std": [0.2, 0, 0.2]}, "'std'"),
    ],
    ids=str,
)
def test_read_statistics_rejects_invalid_files(content: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(RebarError, match=named) as error:
        read_statistics(write_json(tmp_path / "s.json", content))
    assert error.value.code == "stats-file-invalid"
    with pytest.raises(RebarError, match=r"none\.json") as error:
        read_statistics(tmp_path / "none.json")
    assert error.value.code == "stats-file-invalid"


def test_read_statistics_reads_what_measure_stats_writes(textures: BetonFile, tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    path.write_text(measure_stats(textures.path, num_threads=1).to_json())
    found = read_statistics(path)
    cv2 = pytest.importorskip("cv2")
    images = [cv2.imdecode(textures.image_bytes(i), cv2.IMREAD_COLOR)[..., ::-1] / 255 for i in range(len(textures))]
    mean, mean_square = (np.mean([(image**power).mean((0, 1)) for image in images], axis=0) for power in (1, 2))
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.std, np.sqrt(mean_square - mean**2), atol=1e-5)


RECIPES = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}  # epochs: ramp


def reference(epoch: int, low: int, high: int, start: int, end: int) -> int:
    """Round linear interpolation to a multiple of 32; numpy rounds halves to even."""
    if epoch <= start:
        return low
    return high if epoch >= end else int(np.round(np.interp(epoch, [start, end], [low, high]) / 32)) * 32


@pytest.mark.parametrize(("epochs", "ramp"), RECIPES.items())
@pytest.mark.parametrize(("low", "high"), [(160, 192), (128, 224), (160, 160), (100, 200)])
def test_resolution_equals_the_reference_for_every_recipe(
    epochs: int, ramp: tuple[int, int], low: int, high: int
) -> None:
    config = ResolutionConfig(min_res=low, max_res=high, start_ramp=ramp[0], end_ramp=ramp[1])
    resolutions = [config.at(epoch) for epoch in range(epochs)]
    assert resolutions == [reference(epoch, low, high, *ramp) for epoch in range(epochs)]


def test_resolution_equals_values_computed_by_hand() -> None:
    recipe = ResolutionConfig(min_res=160, max_res=192, start_ramp=11, end_ramp=13)
    assert [recipe.at(epoch) for epoch in range(10, 16)] == [160, 160, 192, 192, 192, 192]  # 176 / 32 = 5.5
    steep = ResolutionConfig(min_res=96, max_res=224, start_ramp=0, end_ramp=4)
    assert [steep.at(epoch) for epoch in range(6)] == [96, 128, 160, 192, 224, 224]
    fine = ResolutionConfig(min_res=96, max_res=224, start_ramp=0, end_ramp=4, round_to=20)
    assert [fine.at(epoch) for epoch in range(5)] == [96, 120, 160, 200, 224]


def test_resolution_grows_in_steps_of_round_to() -> None:
    fine = ResolutionConfig(min_res=88, max_res=176, start_ramp=14, end_ramp=29, round_to=4)
    sizes = [fine.at(epoch) for epoch in range(36)]
    assert sizes[:15] == [88] * 15
    assert sizes[29:] == [176] * 7
    assert all(later - size in (4, 8) for size, later in itertools.pairwise(sizes[14:30]))


def test_resolution_without_a_ramp_is_max_res_after_the_first_epoch() -> None:
    config = ResolutionConfig(min_res=128, max_res=192)
    assert [config.at(epoch) for epoch in range(3)] == [128, 192, 192]


def test_resolution_is_never_zero() -> None:
    config = ResolutionConfig(min_res=4, max_res=12, start_ramp=0, end_ramp=4)
    assert [config.at(epoch) for epoch in range(5)] == [4, 32, 32, 32, 12]


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"min_res": 192, "max_res": 160}, "max_res 160"),
        ({"start_ramp": 13, "end_ramp": 11}, "end_ramp 11"),
    ],
)
def test_descending_ramp_is_rejected(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(RebarError, match=name) as error:
        ResolutionConfig(**wrong)
    assert error.value.code == "config-conflict"
