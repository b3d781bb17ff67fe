"""Train with timm's model, optimizer, scheduler, Mixup and EMA, and Rebar's loader in place of timm's.

pip install timm
python examples/timm_components.py train.beton val.beton --model resnet50 --epochs 100
"""

import argparse
from collections.abc import Sequence

import timm
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

from rebar.loading import CenterCrop, Loader, Normalizer, OrderOption, RandomResizedCrop


def main(argv: Sequence[str] | None = None) -> None:
    """Train for some epochs, and print the validation accuracy of the averaged weights after each."""
    parser = argparse.ArgumentParser(description="Train with timm's components and Rebar's loader.")
    parser.add_argument("train", help="train.beton")
    parser.add_argument("val", help="val.beton")
    parser.add_argument("--model", default="resnet50", help="a timm model (default: resnet50)")
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--resolution", type=int, default=160, help="pixels (default: 160)")
    parser.add_argument("--lr", type=float, default=5e-3)
    args = parser.parse_args(argv)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = {"batch_size": args.batch_size, "resolution": args.resolution}
    train_loader = Loader(args.train, order=OrderOption.RANDOM, cropper=RandomResizedCrop(), seed=0, **sizes)
    val_loader = Loader(args.val, order=OrderOption.SEQUENTIAL, cropper=CenterCrop(), drop_last=False, **sizes)
    normalizer = Normalizer(device, torch.float32)

    model = timm.create_model(args.model, num_classes=args.num_classes).to(device, memory_format=torch.channels_last)
    average = ModelEmaV3(model, decay=0.9999, use_warmup=True)
    optimizer = create_optimizer_v2(model, opt="lamb", lr=args.lr, weight_decay=0.02)
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=args.epochs, updates_per_epoch=len(train_loader), step_on_epochs=False
    )
    mixup = Mixup(mixup_alpha=0.1, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=args.num_classes)
    criterion = BinaryCrossEntropy(target_threshold=0.2)

    step = 0
    for epoch in range(epochs):
        model.train()
        for images, labels in normalizer.each(train_loader.epoch(epoch)):
            images, targets = mixup(images, labels)
            loss = criterion(model(images), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            scheduler.step_update(step)
            average.update(model, step=step)

        average.eval()
        correct, total = 0, 0
        with torch.no_grad():
            for images, labels in normalizer.each(val_loader.epoch(0)):
                correct += int((average(images).argmax(1) == labels).sum())
                total += len(labels)
        print(f"epoch {epoch + 1}: top-1 {correct / total:.2%} of {total} images", flush=True)


if __name__ == "__main__":
    main()
