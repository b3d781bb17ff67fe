"""ffcv-imagenet's train_loop, reimplemented step by step.

- Images are copied to the GPU as bytes and normalized there to half precision on a separate stream: by FFCV's own
  kernel there, by Rebar's Normalizer here. On a CPU, the loader's threads normalize.
- channels_last; two parameter groups, selected by "bn" in the name; SGD with PyTorch's default implementation.
- The learning rate of each step comes from a table for the epoch; losses stay on the device (log_level 1); the
  progress bar's text is updated at every step.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from rebar.loading import Normalizer
from rebar.training.execution import autocast, gradient_scaler
from training_loops import LABEL_SMOOTHING, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Epoch, Job

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@contextmanager
def epochs(job: Job) -> Iterator[Callable[[], Epoch]]:
    """See :mod:`training_loops`."""
    model = job.model().to(memory_format=torch.channels_last).to(job.device)
    criterion = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    named = list(model.named_parameters())
    groups = [
        {"params": [parameter for name, parameter in named if "bn" in name], "weight_decay": 0.0},
        {"params": [parameter for name, parameter in named if "bn" not in name], "weight_decay": WEIGHT_DECAY},
    ]
    optimizer = torch.optim.SGD(groups, lr=1, momentum=MOMENTUM)
    scaler = gradient_scaler(job.precision, job.device)
    normalized = [] if job.device.type == "cuda" else job.normalized()

    def batches() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        if normalized:
            return job.epoch(normalized)
        return Normalizer(job.device, _HALF.get(job.precision, torch.float32)).each(job.epoch(job.batches))

    def train_loop() -> Epoch:
        model.train()
        losses = []
        rates = np.interp(np.arange(job.steps), [0, job.steps], [LEARNING_RATE, LEARNING_RATE])
        bar = tqdm(batches(), total=job.steps)
        for number, (images, labels) in enumerate(bar):
            for group in optimizer.param_groups:
                group["lr"] = rates[number]
            optimizer.zero_grad(set_to_none=True)
            with autocast(job.precision, job.device):
                logits = model(images)
                loss = criterion(logits, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

            losses.append(loss.detach())
            shown = [f"{group['lr']:.3f}" for group in optimizer.param_groups]
            bar.set_description(f"ep=0, iter={number}, shape={tuple(images.shape)}, lrs={shown}")
        return Epoch(torch.stack(losses).float().mean().item(), job.steps * job.batch_size)

    yield train_loop
