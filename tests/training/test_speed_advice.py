"""The advice names an option that is not set yet, and the one that helps most first."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from rebar.config import parse_config
from rebar.training.config import TrainConfig
from rebar.training.speed_advice import Situation, Stage, advise


def configured(*options: str) -> TrainConfig:
    return parse_config(TrainConfig, options, description="test")


BASE = Situation(
    config=configured(),
    precision="fp16",
    resolution=224,
    faster=2.0,
    workers=8,
    cores=8,
    torch_threads=8,
    long_side=500,
    fits=True,
    memory_needed=0.1,
    in_file_order=1.0,
    gpu_memory=0.7,
)
CPU: dict[str, Any] = {"gpu_memory": None, "precision": "32"}


@pytest.mark.parametrize(
    ("stage", "options", "differences", "advice"),
    [
        ("decoding", [], {"workers": 3}, "--data.num_workers 8 (now 3)"),
        ("decoding", [], {}, "smaller images: write the data again with write_dataset.py --max-resolution 368 "),
        (
            "decoding",
            [],
            {"faster": 1.3, "long_side": 1000},
            "smaller images: write the data again with write_dataset.py --max-resolution 880 ",
        ),
        ("decoding", [], {"faster": 1.2}, "no option"),  # images of 464 px would not help enough
        ("decoding", [], {"faster": 1.05, "workers": 3}, "no single option"),
        ("step", [], {"faster": 1.05}, "no single option"),
        ("decoding", [], {"long_side": 380}, "no option"),  # a crop of 224 px needs these pixels
        ("disk", [], {"fits": False, "memory_needed": 0.9}, "--data.in_memory 1"),
        ("disk", [], {"fits": False, "memory_needed": 1.1, "in_file_order": 3.0}, "--data.in_memory 0"),
        ("disk", ["--data.in_memory=1"], {"fits": False, "memory_needed": 1.1}, "smaller images"),
        ("disk", ["--data.in_memory=0"], {"in_file_order": 3.0}, "--data.in_memory 1"),
        ("disk", ["--data.in_memory=0"], {"fits": False, "memory_needed": 2.0, "in_file_order": 3.0}, "smaller images"),
        ("disk", [], {"long_side": 300}, "no option"),
        ("copy", [], {}, "no option"),
        ("step", [], {"precision": "32"}, "--training.precision bf16"),
        ("step", [], {"precision": "32", "supports_bf16": False}, "--training.precision fp16"),
        ("step", ["--execution.channels_last=0"], {}, "--execution.channels_last 1"),
        ("step", [], {}, "--execution.compile_model 1"),
        ("step", ["--execution.gradient_checkpointing=1"], {"gpu_memory": 0.3}, "--execution.gradient_checkpointing 0"),
        ("step", ["--execution.gradient_checkpointing=1"], {"gpu_memory": 0.7}, "no option"),
        ("step", ["--execution.compile_model=1", "--execution.accumulate=2"], {"gpu_memory": 0.3}, "--execution.acc"),
        ("step", ["--execution.compile_model=1", "--execution.accumulate=4"], {"gpu_memory": 0.3}, "no option"),
        ("step", ["--execution.compile_model=1", "--training.batch_size=64"], {"gpu_memory": 0.1}, "--training.batch"),
        ("step", ["--execution.compile_model=1"], {}, "no option: more GPUs"),
        ("step", [], CPU | {"torch_threads": 1}, "the environment variable OMP_NUM_THREADS=8"),
        ("step", [], CPU, "no option: a GPU"),
    ],
)
def test_advice_for_the_stage_that_limits(
    stage: Stage, options: list[str], differences: dict[str, Any], advice: str
) -> None:
    situation = dataclasses.replace(BASE, config=configured(*options), **differences)
    assert advise(stage, situation).startswith(advice)


def followed(stage: Stage, situation: Situation) -> Iterator[str]:
    """Set what is advised, until no option is left; yield each option."""
    options: list[str] = []
    while (advice := advise(stage, situation)).startswith("--"):
        name, value = advice.split(":")[0].split()[:2]
        yield name
        options.append(f"{name}={value}")
        config = configured(*options)
        threads = config.data.num_workers or situation.workers
        fits = situation.fits or config.data.in_memory == "true"
        situation = dataclasses.replace(
            situation, config=config, precision=config.training.precision, workers=threads, fits=fits
        )


@pytest.mark.parametrize("stage", ["disk", "decoding", "copy", "step"])
@pytest.mark.parametrize("differences", [CPU | {"workers": 2}, {"precision": "32", "gpu_memory": 0.1, "workers": 2}])
@pytest.mark.parametrize("fits", [True, False])
def test_advice_that_was_followed_is_not_repeated(stage: Stage, differences: dict[str, Any], fits: bool) -> None:
    names = list(
        followed(stage, dataclasses.replace(BASE, fits=fits, memory_needed=0.9, in_file_order=2.0, **differences))
    )
    assert len(names) == len(set(names))
    assert all(name in {"--data.num_workers", "--data.in_memory"} for name in names) or stage == "step"
