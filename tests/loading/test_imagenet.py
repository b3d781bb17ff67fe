"""The loaders of the ImageNet recipe select the right samples of the right file."""

from pathlib import Path

import numpy as np
import pytest

from rebar.beton import ImagePolicy, write_beton
from rebar.beton.selection import SUBSETS, Selection
from rebar.loading.imagenet import DataConfig, build_train_loader, build_val_loader
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
