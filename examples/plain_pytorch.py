"""Train a torchvision model with Rebar's loader in a plain PyTorch loop.

python examples/plain_pytorch.py train.beton val.beton
torchrun --nproc_per_node=4 examples/plain_pytorch.py train.beton val.beton
"""

import argparse
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torchvision
from torch import nn

from rebar.loading import CenterCrop, Loader, Normalizer, OrderOption, RandomResizedCrop


def main(argv: Sequence[str] | None = None) -> None:
    """Train for some epochs, and print the validation accuracy after each."""
    parser = argparse.ArgumentParser(description="Train a torchvision model with Rebar's loader.")
    parser.add_argument("train", help="train.beton")
    parser.add_argument("val", help="val.beton")
    parser.add_argument("--arch", default="resnet50", help="a torchvision classifier (default: resnet50)")
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=256, help="per process (default: 256)")
    parser.add_argument("--resolution", type=int, default=176, help="pixels (default: 176)")
    parser.add_argument("--lr", type=float, default=0.1)
    args = parser.parse_args(argv)

    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    distributed = "RANK" in os.environ
    if distributed:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    is_main = not distributed or dist.get_rank() == 0

    common = {"batch_size": args.batch_size, "resolution": args.resolution, "pin_memory": device.type == "cuda"}
    train_loader = Loader(
        args.train, order=OrderOption.RANDOM, cropper=RandomResizedCrop(), distributed=distributed, seed=0, **common
    )
    # Every rank evaluates a part; the last batches may differ in size, so sums are reduced, not means.
    val_loader = Loader(
        args.val,
        order=OrderOption.SEQUENTIAL,
        cropper=CenterCrop(),
        distributed=distributed,
        drop_last=False,
        **common,
    )
    normalizer = Normalizer(device, torch.float32)  # ImageNet's mean and standard deviation

    model: nn.Module = torchvision.models.get_model(args.arch, num_classes=args.num_classes)
    model = model.to(device, memory_format=torch.channels_last)
    if distributed:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=5e-5)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(train_loader))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    for epoch in range(args.epochs):
        model.train()
        for images, labels in normalizer.each(train_loader.epoch(epoch)):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = criterion(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()

        model.eval()
        correct = torch.zeros(2, device=device)
        with torch.no_grad():
            for images, labels in normalizer.each(val_loader.epoch(0)):
                correct += torch.tensor([(model(images).argmax(1) == labels).sum(), len(labels)], device=device)
        if distributed:
            dist.all_reduce(correct)
        if is_main:
            print(f"epoch {epoch + 1}: top-1 {correct[0] / correct[1]:.2%} of {int(correct[1])} images", flush=True)
    if distributed:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
