"""Images/s of the training step on synthetic batches. Each case changes one setting of the baseline."""

import functools
import gc
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu_proof.job import Job
from benchmarks.gpu_proof.training_step import build_stepper, synchronize, time_steps
from benchmarks.gpu_proof.variants import FLIP_TTA, blur_then_convolve, convolve_with_folded_blur
from rebar.models.modifications import BlurPoolConv2d
from rebar.training.execution import autocast
from rebar.training.run import Run

CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("baseline", {}, []),
    ("without BlurPool", {"blurpool": False}, []),
    ("fp16", {"precision": "fp16"}, []),
    ("160 px", {"resolution": 160}, []),
    ("192 px", {"resolution": 192}, []),
    ("EMA every step", {}, ["--averaging.use_ema=1", "--averaging.ema_update_every=1"]),
    ("foreach instead of fused SGD", {"optimizer": "foreach"}, []),
    ("for-loop instead of fused SGD", {"optimizer": "single"}, []),
    ("strong augmentation", {}, ["--regularization.augmentation=strong"]),
    ("MixUp", {}, ["--regularization.use_mixup=1"]),
    ("gradient checkpointing", {}, ["--execution.gradient_checkpointing=1"]),
    ("every blur at stride 1", {"blur": blur_then_convolve}, []),
    ("every blur folded into its convolution", {"blur": convolve_with_folded_blur}, []),
    ("baseline again", {}, []),
    ("batch 512", {"batch_size": 512}, []),
    ("batch 1024", {"batch_size": 1024}, []),
    ("160 px, fp16", {"resolution": 160, "precision": "fp16"}, []),
    ("160 px, batch 512", {"resolution": 160, "batch_size": 512}, []),
    ("192 px, batch 512", {"resolution": 192, "batch_size": 512}, []),
    ("contiguous instead of channels_last", {}, ["--execution.channels_last=0"]),
    ("32 bit with TF32", {"precision": "32"}, []),
]
"""Most important first: name, differences from the baseline, options of train_imagenet.py."""


def run(job: Job) -> None:
    """Measure each case, then evaluation with flip TTA, then the blur alone."""
    torch.backends.cudnn.benchmark = True
    job.note(baseline="ResNet-50, 224 px, batch 256, bf16, BlurPool, channels_last, fused SGD, eager")
    rehearsed = [*CASES[:2], *(case for case in CASES if "blur" in case[1])]
    for name, settings, options in rehearsed if job.rehearse else CASES:
        if job.seconds_left < 22:
            job.skip(name)
            continue
        job.attempt(functools.partial(measure, job, name, dict(settings), options), case=name)
    job.attempt(lambda: flip_tta(job), case="flip TTA")
    job.attempt(lambda: blurs(job), case="blur")


def measure(job: Job, name: str, settings: dict[str, Any], options: list[str]) -> None:
    """Add one row."""
    optimizer = settings.pop("optimizer", "")
    blur = settings.pop("blur", None)
    sizes = {"resolution": 224, "batch_size": 256, **settings}
    if job.rehearse:
        sizes |= {"resolution": 32, "batch_size": 4}
    stepper = build_stepper(job, *options, **sizes)
    if optimizer:
        for group in stepper.run.state.optimizer.param_groups:
            group["fused"], group["foreach"] = False, optimizer == "foreach"
    if blur:
        for module in stepper.run.state.model.modules():
            if isinstance(module, BlurPoolConv2d):
                module.forward = functools.partial(blur, module)  # type: ignore[method-assign]
    result = time_steps(
        job,
        stepper,
        batch_size=sizes["batch_size"],
        resolution=sizes["resolution"],
        seconds=0.2 if job.rehearse else 1.2,
    )
    row = {"precision": "bf16", "blurpool": True, **sizes, "options": " ".join(options) or optimizer}
    job.add(case=name, **row, **result)
    del stepper
    gc.collect()
    if not job.rehearse:
        torch.cuda.empty_cache()


def flip_tta(job: Job) -> None:
    """Time the evaluation of a batch and its flip for each variant; the smaller batch leaves the GPU partly idle."""
    for batch_size in (2,) if job.rehearse else (64, 512):
        sizes = {"resolution": 32 if job.rehearse else 224, "batch_size": batch_size}
        stepper = build_stepper(job, resolution=sizes["resolution"], batch_size=batch_size)
        model = stepper.run.state.model.eval()
        images, _ = stepper.run.normalizer()(stepper.batch)
        for name, predict in FLIP_TTA.items():
            if job.seconds_left < 8:
                job.skip(f"flip TTA, {name}, batch {batch_size}")
                continue
            work = functools.partial(evaluate_once, stepper.run, predict, model, images)
            job.attempt(functools.partial(one_flip_tta, job, name, work, sizes), case=f"flip TTA, {name}", **sizes)


def one_flip_tta(job: Job, name: str, work: Any, sizes: dict[str, int]) -> None:
    """Add one row."""
    if not job.rehearse:
        torch.cuda.reset_peak_memory_stats()
    per_batch = milliseconds(job, work)
    row: dict[str, Any] = {"case": f"flip TTA, {name}", **sizes, "ms_per_batch": per_batch}
    row["images_per_second"] = 1000 * sizes["batch_size"] / per_batch
    if not job.rehearse:
        row["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    job.add(**row)


@torch.inference_mode()
def evaluate_once(run: Run, predict: Any, model: nn.Module, images: torch.Tensor) -> None:
    with autocast(run.state.precision, run.world.device):
        predict(model, images)


# ------------------------------------------------------------------ the blur alone

SHAPES = ((128, 56), (256, 56), (256, 28), (512, 28), (512, 14), (1024, 14))
"""Channels and side length of the tensors that ResNet-50 blurs at 224 px: two per stage."""


def depthwise(x: torch.Tensor, stride: int) -> torch.Tensor:
    binomial = torch.tensor([1.0, 2.0, 1.0], device=x.device, dtype=x.dtype) / 4
    kernel = torch.outer(binomial, binomial).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel.contiguous(), padding=1, stride=stride, groups=x.shape[1])


def pooled(x: torch.Tensor, stride: int) -> torch.Tensor:
    once = F.avg_pool2d(x, 2, 1, padding=1)
    return F.avg_pool2d(once, 2, stride)


def shifted(x: torch.Tensor, stride: int) -> torch.Tensor:
    padded = F.pad(x, (1, 1, 1, 1))
    rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    both = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    return both[:, :, ::stride, ::stride]


def without_cudnn(x: torch.Tensor, stride: int) -> torch.Tensor:
    with torch.backends.cudnn.flags(enabled=False):
        return depthwise(x, stride)


def blurs(job: Job) -> None:
    """Time forward and backward of a step's six blurs, for several implementations and strides 1 and 2."""
    variants: list[tuple[str, Any]] = [
        ("depthwise conv (cuDNN's choice)", depthwise),
        ("depthwise conv without cuDNN", without_cudnn),
        ("average pooling twice", pooled),
    ]
    if not job.rehearse:
        variants.append(("shifted sums, compiled", torch.compile(shifted, dynamic=False)))
    for name, blur in variants:
        for stride in (1, 2):
            job.attempt(functools.partial(one_blur, job, name, blur, stride), case=name, stride=stride)


def one_blur(job: Job, name: str, blur: Any, stride: int) -> None:
    batch, dtype = (2, torch.float32) if job.rehearse else (256, torch.bfloat16)
    inputs = [
        torch.randn(batch, channels, side, side, device=job.device, dtype=dtype).contiguous(
            memory_format=torch.channels_last
        )
        for channels, side in (SHAPES[:1] if job.rehearse else SHAPES)
    ]
    worst = max(float((blur(x, stride).float() - depthwise(x.float(), stride)).abs().max()) for x in inputs)
    result = {"max_error": worst, "channels_last": _kept(blur(inputs[0], stride))}
    for x in inputs:
        x.requires_grad_()

    def step() -> None:
        for x in inputs:
            x.grad = None
            y = blur(x, stride)
            y.backward(y.detach())

    result |= {"ms_forward_backward": milliseconds(job, step)}
    job.add(case=f"six blurs: {name}", stride=stride, batch_size=batch, **result)


def _kept(y: torch.Tensor) -> bool:
    return y.is_contiguous(memory_format=torch.channels_last)


def milliseconds(job: Job, work: Any) -> float:
    """Return the mean time of one call in milliseconds."""
    import time

    for _ in range(3):
        work()
    synchronize(job)
    began = time.perf_counter()
    for _ in range(10):
        work()
    synchronize(job)
    return (time.perf_counter() - began) * 100
