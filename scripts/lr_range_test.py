#!/usr/bin/env python
"""Run a learning rate range test: train_imagenet.py --find-lr, with the same options.

python scripts/lr_range_test.py --config-file rn50_configs/g5_1gpu.yaml --min-lr 1e-4 --max-lr 10 --iterations 200
torchrun --nproc_per_node=4 scripts/lr_range_test.py --config-file rn50_configs/g5_4gpu.yaml
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_imagenet  # a script in the repository's root
from rebar.cli import run_command
from rebar.training.aliases import Alias
from rebar.training.translation import translate

ALIASES = (  # flags that train_imagenet.py has with another meaning
    Alias("--min-lr", "--find-lr-min={}", "RATE"),
    Alias("--max-lr", "--find-lr-max={}", "RATE"),
    Alias("--iterations", "--find-lr-steps={}", "N"),
)


def main(argv: Sequence[str]) -> None:
    """Run the range test."""
    train_imagenet.main([*translate(argv, ALIASES), "--find-lr"])


if __name__ == "__main__":
    run_command(main)
