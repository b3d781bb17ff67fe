"""Train with PyTorch Lightning: a LightningDataModule around Rebar's loader.

    pip install pytorch-lightning
    python examples/lightning_datamodule.py train.beton val.beton --devices 4

Lightning starts one process per device. Rebar's loader shards the data itself, so use_distributed_sampler is False.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from torch.nn import functional as F

from rebar.loading import Batch, CenterCrop, Loader, Normalizer, OrderOption, RandomResizedCrop


class Epochs:
    """An iterable for Lightning. Each iteration is the trainer's current epoch of a loader, as normalized batches."""

    def __init__(self, loader: Loader, trainer: pl.Trainer) -> None:
        self.loader, self.trainer = loader, trainer

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        normalizer = Normalizer(self.trainer.strategy.root_device, torch.float32)
        return iter(normalizer.each(self.loader.epoch(self.trainer.current_epoch)))


class BetonDataModule(pl.LightningDataModule):
    """Two .beton files. ``batch_size`` is per process, ``resolution`` in pixels."""

    def __init__(self, train: str, val: str, batch_size: int = 256, resolution: int = 176) -> None:
        super().__init__()
        self.train, self.val, self.batch_size, self.resolution = train, val, batch_size, resolution

    def train_dataloader(self) -> Epochs:
        return self._epochs(self.train, order=OrderOption.RANDOM, cropper=RandomResizedCrop())

    def val_dataloader(self) -> Epochs:
        return self._epochs(self.val, order=OrderOption.SEQUENTIAL, cropper=CenterCrop(), drop_last=False)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch  # the normalizer did it

    def _epochs(self, path: str, **options: Any) -> Epochs:
        trainer = self.trainer
        distributed = trainer.world_size > 1
        loader = Loader(
            path, batch_size=self.batch_size, resolution=self.resolution, distributed=distributed, seed=0, **options
        )
        return Epochs(loader, trainer)


class Classifier(pl.LightningModule):
    """A torchvision classifier, trained with SGD and OneCycle."""

    def __init__(self, arch: str, num_classes: int, lr: float) -> None:
        super().__init__()
        self.model, self.lr = torchvision.models.get_model(arch, num_classes=num_classes), lr

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images), labels, label_smoothing=0.1)

    def validation_step(self, batch: Batch, index: int) -> None:
        images, labels = batch
        correct = (self.model(images).argmax(1) == labels).float().mean()
        self.log("val_top1", correct, batch_size=len(labels), sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-5)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(argv: Sequence[str] | None = None) -> None:
    """Train for some epochs, and print the validation accuracy."""
    parser = argparse.ArgumentParser(description="Train with PyTorch Lightning and Rebar's loader.")
    parser.add_argument("train", help="train.beton")
    parser.add_argument("val", help="val.beton")
    parser.add_argument("--arch", default="resnet50", help="a torchvision classifier (default: resnet50)")
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=256, help="per process (default: 256)")
    parser.add_argument("--resolution", type=int, default=176, help="pixels (default: 176)")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--devices", type=int, default=1)
    args = parser.parse_args(argv)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        devices=args.devices,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
    )
    data = BetonDataModule(args.train, args.val, args.batch_size, args.resolution)
    trainer.fit(Classifier(args.arch, args.num_classes, args.lr), datamodule=data)
    if trainer.is_global_zero:
        print(f"val_top1 {trainer.callback_metrics['val_top1']:.4f}", flush=True)


if __name__ == "__main__":
    main()
