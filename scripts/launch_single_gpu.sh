#!/usr/bin/env bash
#
# Train on one GPU, or on the CPU if there is none. For several GPUs: launch_multi_gpu.sh.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat >&2 <<TEXT
usage: $0 DATA EPOCHS BATCH WORKERS [flags of train_imagenet.py]

  DATA     folder with train.beton and val.beton, or with train/ and val/ images
  EPOCHS   number of epochs
  BATCH    training batch size; the recipe's learning rate is scaled to it
  WORKERS  loader threads, about the number of cores

  CONFIG=FILE           config file (default rn50_configs/rn50_16_epochs.yaml)
  RESET_SCHED=1, FREEZE_LR=1, FREEZE_LR_VALUE=RATE: see docs/resume.md

example: $0 /data/betons 16 512 12 --max-lr 0.5
TEXT
    exit 2
}

(($# >= 4)) || usage
exec "$repo/scripts/launch_multi_gpu.sh" 1 "$@"
