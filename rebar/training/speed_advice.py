"""Choose the one option that helps most against the stage that limits the speed of training."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rebar.training.config import TrainConfig
from rebar.training.options import Precision

Stage = Literal["disk", "decoding", "copy", "step"]

_BALANCED = 1.1  # relative to the next stage, the speed above which one stage alone is the bottleneck
_SMALLER = 0.9  # images must become smaller by this factor for the option to be worth writing the dataset again
_ASPECT_RATIO = 4 / 3
_FASTER_IN_FILE_ORDER = 1.5
_FULL_MEMORY = 0.8
_SMALL_BATCH = 128
_SIDE_MULTIPLE = 16


@dataclass(frozen=True)
class Situation:
    """What the advice depends on, for one rank."""

    config: TrainConfig
    precision: Precision
    """The resolved precision."""
    resolution: int
    """Training resolution in pixels."""
    faster: float
    """The speed of the next stage, relative to the one that limits: what can be gained at most."""
    workers: int
    """Decoding threads."""
    cores: int
    """Usable cores."""
    torch_threads: int
    long_side: float
    """Mean long side of the stored images, pixels."""
    fits: bool
    """Whether the data is kept in the page cache."""
    memory_needed: float
    """Bytes of the data, relative to the available memory."""
    in_file_order: float
    """Speed of the disk in file order, relative to the order in use."""
    gpu_memory: float | None
    """Peak memory, relative to the GPU's; None: no GPU."""
    supports_bf16: bool = True
    """Whether the GPU computes fast in bf16."""


def advise(stage: Stage, situation: Situation) -> str:
    """Return the option and value that help most, or why there is none. Never names an option that is set already."""
    rules = {"disk": _for_disk, "decoding": _for_decoding, "copy": _for_copy, "step": _for_step}
    if situation.faster < _BALANCED:
        return "no single option: the two slowest stages are about equally fast"
    return next(rules[stage](situation))


def _for_decoding(situation: Situation) -> Iterator[str]:
    if situation.workers < situation.cores:
        yield f"--data.num_workers {situation.cores} (now {situation.workers})"
    yield from _smaller_images(situation)
    yield "no option: all cores decode. Use a machine with more cores per rank"


def _for_disk(situation: Situation) -> Iterator[str]:
    in_memory = situation.config.data.in_memory
    if not situation.fits and in_memory == "auto" and situation.memory_needed <= 1:
        yield "--data.in_memory 1: the data needs most of the available memory, but fits"
    if situation.in_file_order >= _FASTER_IN_FILE_ORDER:
        faster = f"the disk is {situation.in_file_order:.1f} times as fast in file order"
        if situation.fits and in_memory == "false":
            yield f"--data.in_memory 1: {faster}"
        if not situation.fits and in_memory != "false":
            yield f"--data.in_memory 0: {faster}"
    yield from _smaller_images(situation)
    yield "no option: copy the data to a faster disk, such as a local NVMe drive"


def _smaller_images(situation: Situation) -> Iterator[str]:
    """Advise smaller stored images. Decoding time and bytes are about proportional to their area."""
    validation = situation.config.validation
    needed = _ASPECT_RATIO * max(situation.resolution, validation.resolution / validation.crop_ratio)
    side = max(needed, situation.long_side / math.sqrt(situation.faster))
    side = math.ceil(side / _SIDE_MULTIPLE) * _SIDE_MULTIPLE
    if side <= _SMALLER * situation.long_side:
        yield (
            f"smaller images: write the data again with write_dataset.py --max-resolution {side} (the mean "
            f"long side is now {situation.long_side:.0f} px)"
        )


def _for_copy(situation: Situation) -> Iterator[str]:
    yield "no option: check that the GPU has all its PCIe lanes (nvidia-smi -q -d PCI)"


def _for_step(situation: Situation) -> Iterator[str]:
    execution, on_gpu = situation.config.execution, situation.gpu_memory is not None
    memory = situation.gpu_memory or 0.0
    if not on_gpu and situation.torch_threads < situation.cores:
        yield f"the environment variable OMP_NUM_THREADS={situation.cores} (now {situation.torch_threads} threads)"
    if on_gpu and situation.precision == "32":
        yield f"--training.precision {'bf16' if situation.supports_bf16 else 'fp16'}"
    if not execution.channels_last:
        yield "--execution.channels_last 1"
    if on_gpu and execution.gradient_checkpointing and 2 * memory < _FULL_MEMORY:
        yield "--execution.gradient_checkpointing 0: the GPU has enough memory"
    if on_gpu and not execution.compile_model and not execution.gradient_checkpointing:  # gains nothing on a CPU
        yield "--execution.compile_model 1"
    if on_gpu and execution.accumulate > 1 and execution.accumulate * memory < _FULL_MEMORY:
        yield "--execution.accumulate 1: the GPU has enough memory"
    batch = situation.config.training.batch_size
    if on_gpu and batch < _SMALL_BATCH and 2 * memory < _FULL_MEMORY:
        yield f"--training.batch_size {2 * batch}: the GPU has enough memory; scale --lr as well"
    yield f"no option: {'more GPUs' if on_gpu else 'a GPU'}, a smaller --model.arch or a lower --resolution.max_res"
