#!/usr/bin/env bash
#
# Train on several GPUs of one machine, with one process per GPU.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
config=${CONFIG:-$repo/rn50_configs/rn50_16_epochs.yaml}

usage() {
    cat >&2 <<TEXT
usage: $0 NGPUS DATA EPOCHS BATCH WORKERS [flags of train_imagenet.py]

  NGPUS    number of GPUs
  DATA     folder with train.beton and val.beton, or with train/ and val/ images
  EPOCHS   number of epochs
  BATCH    training batch size per GPU; the recipe's learning rate is scaled to the global batch.
           --global-batch-size N replaces it with N divided by the number of GPUs
  WORKERS  loader threads per process, about cores / NGPUS

  CONFIG=FILE           config file (default rn50_configs/rn50_16_epochs.yaml)
  RESET_SCHED=1, FREEZE_LR=1, FREEZE_LR_VALUE=RATE: see docs/resume.md

With --max-lr, the schedule is onecycle unless --scheduler names another.

example: $0 8 /data/betons 16 128 12 --max-lr 1.7
TEXT
    exit 2
}

die() {
    echo "error: $1" >&2
    exit 2
}

require_count() { [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 must be a positive integer, not '$2'"; }

# Print the number of visible GPUs; 0 without a driver.
visible_gpus() {
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '[^[:space:]]' || true
    else
        { nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c '^GPU' || true
    fi
}

(($# >= 5)) || usage
gpus=$1 data=$2 epochs=$3 batch=$4 workers=$5
shift 5
require_count NGPUS "$gpus"
require_count EPOCHS "$epochs"
require_count BATCH "$batch"
require_count WORKERS "$workers"
[[ -f $config ]] || die "$config does not exist"
[[ -f $data/train.beton && -f $data/val.beton || -d $data/train ]] ||
    die "$data has neither train.beton and val.beton, which write_dataset.py writes, nor train/ with images"

visible=$(visible_gpus)
if ((visible == 0)); then
    echo "warning: no GPU is visible: training on the CPU" >&2
elif ((gpus > visible)); then
    echo "warning: $gpus processes, but only $visible visible GPUs" >&2
fi

# has FLAG...: whether one of the flags is among the extra arguments
has() {
    local flag argument
    for flag in "$@"; do
        for argument in "${extra[@]}"; do
            if [[ ${argument//_/-} == "$flag" || ${argument//_/-} == "$flag="* ]]; then return 0; fi
        done
    done
    return 1
}

extra=("$@") recipe=()
if has --max-lr --lr.max-lr && ! has --scheduler --lr-schedule-type --lr.lr-schedule-type; then
    recipe+=(--scheduler onecycle)
    echo "note: onecycle schedule, because --max-lr is given without --scheduler"
fi
if [[ -z ${CONFIG:-} ]] && ((epochs >= 8)); then  # the rule of the recipes rn50_*_epochs.yaml
    recipe+=(--start-ramp "$((epochs * 3 / 4 - 1))" --end-ramp "$((epochs * 7 / 8 - 1))")
fi

python=$repo/.venv/bin/python
[[ -x $python ]] || python=python3

# One process needs no rendezvous. torchrun runs as a module of the same Python.
launcher=("$python")
if ((gpus > 1)); then launcher+=(-m torch.distributed.run --standalone "--nproc_per_node=$gpus"); fi

exec "${launcher[@]}" "$repo/train_imagenet.py" --config-file "$config" \
    --data.train_dataset "$data" --data.val_dataset "$data" \
    --epochs "$epochs" --training.batch_size "$batch" --data.num_workers "$workers" "${recipe[@]}" "$@"
