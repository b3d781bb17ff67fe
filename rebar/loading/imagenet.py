"""The two loaders of the ImageNet recipe, and the settings they share."""

from dataclasses import dataclass

from rebar.config import knob
from rebar.loading.corruption import OnError
from rebar.loading.crops import CenterCrop, RandomResizedCrop
from rebar.loading.loader import Loader
from rebar.loading.order import OrderOption


@dataclass(frozen=True)
class DataConfig:
    """Data."""

    train_dataset: str = knob("", help="training .beton; default $WRITE_DIR/train.beton")
    val_dataset: str = knob("", help="validation .beton; default $WRITE_DIR/val.beton")
    num_workers: int = knob(0, help="decoding threads per process; 0: the cores divided by the processes", minimum=0)
    in_memory: bool = knob(
        True, help="the files fit in memory; if not, they are shuffled by windows of 512 MB and read ahead"
    )
    subset: int = knob(0, help="train on the first so many samples only (the file is shuffled); 0: on all", minimum=0)
    min_scale: float = knob(0.08, help="smallest share of the area a random crop takes", minimum=0.001, maximum=1)
    on_error: OnError = knob("raise", help="a corrupt training picture: raise an error, or replace it by another")


def build_train_loader(
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    distributed: bool,
    pin_memory: bool,
) -> Loader:
    """Shuffled, randomly cropped and mirrored; an incomplete last batch is dropped."""
    return Loader(
        config.train_dataset,
        batch_size,
        config.num_workers,
        os_cache=config.in_memory,
        order=OrderOption.RANDOM if config.in_memory else OrderOption.QUASI_RANDOM,
        seed=seed,
        indices=range(config.subset) if config.subset else None,
        drop_last=True,
        cropper=RandomResizedCrop(scale=(config.min_scale, 1.0)),
        distributed=distributed,
        on_error=config.on_error,
        pin_memory=pin_memory,
    )


def build_val_loader(
    config: DataConfig,
    *,
    batch_size: int,
    crop_ratio: float,
    distributed: bool,
    pin_memory: bool,
) -> Loader:
    """In file order, centre-cropped; every sample exactly once over all processes, corrupt ones refused."""
    return Loader(
        config.val_dataset,
        batch_size,
        config.num_workers,
        os_cache=config.in_memory,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        cropper=CenterCrop(crop_ratio),
        distributed=distributed,
        pin_memory=pin_memory,
    )
