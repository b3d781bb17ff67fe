#!/usr/bin/env bash
#
# The whole way on one GPU in about an hour: the tests that need a GPU, 25,000 images packed, trained, evaluated.
# 'python -m rebar.aws launch validate' runs it on a rented machine. Started again, it goes on.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run_folder=${RUN_FOLDER:-$repo/runs/validation_run}
work=${DATA_FOLDER:-$run_folder}/validation_run
python=$repo/.venv/bin/python
[[ -x $python ]] || python=python3
tests=passed

usage() {
    cat >&2 <<TEXT
usage: $0 IMAGES [--no-tests] [FLAGS of train_imagenet.py]

  IMAGES             what write_dataset.py takes as --data-dir, such as hf:imagenet-1k, or a folder of .beton files
  --no-tests           leave the GPU's tests out
  RUN_FOLDER=PATH      where the report goes: summary.txt, gpu_tests.txt, training/, evaluation.txt
  DATA_FOLDER=PATH     a fast disk, for the images
  TRAIN_IMAGES, VAL_IMAGES   how many (default 25000 and 5000)
  RESET_SCHED=1, FREEZE_LR=1, FREEZE_LR_VALUE=RATE: see launch_multi_gpu.sh

example: $0 hf:imagenet-1k
TEXT
    exit 2
}

# heading TEXT: what happens, and the time since the start.
heading() { printf '\n== %s  (%d:%02d min)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

run_tests() {
    heading "Tests that need a GPU"
    ./scripts/test.sh -m gpu >"$run_folder/gpu_tests.txt" 2>&1 || tests=failed
    tail -n 1 "$run_folder/gpu_tests.txt"
}

write_betons() {
    local split
    local -An images_of=([train]=${TRAIN_IMAGES:-25000} [val]=${VAL_IMAGES:-5000})
    mkdir -p "$work"
    for split in train val; do
        heading "Pack ${images_of[$split]} images into $split.beton"
        if [[ -f $work/$split.beton ]]; then
            echo "there already"
        else
            HF_HOME=${HF_HOME:-$work/hf} "$python" write_dataset.py --split "$split" --data-dir "$images" \
                --subset "${images_of[$split]}" --write-path "$work/$split.beton"
        fi
    done
}

is_finished() { [[ -s $1 ]] && tail -n 1 "$1" | grep -q '"event": "end"'; }

train() {
    heading "Train rn50_configs/validation_run.yaml"
    if is_finished "$run_folder/training/log.jsonl"; then
        echo "done already"
        return
    fi
    ./scripts/torchrun_from_env.sh train_imagenet.py --config-file rn50_configs/validation_run.yaml \
        --data.train_dataset "$work/train.beton" --data.val_dataset "$work/val.beton" \
        --logging.folder "$run_folder/training" "$@"
}

evaluate() {
    heading "Evaluate the checkpoint"
    "$python" evaluate.py --checkpoint "$run_folder/training/checkpoints/last.pt" --data "$work/val.beton" \
        --both | tee "$run_folder/evaluation.txt"
}

gpu_name() { nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | grep . || echo "no GPU"; }

summarize() {
    heading "Summary"
    {
        echo "machine     $(gpu_name), $(getconf _NPROCESSORS_ONLN) CPUs"
        echo "GPU tests   $tests"
        grep 'top-1' "$run_folder/evaluation.txt" | sed 's/^/evaluation  /'
        echo "in all      $((SECONDS / 60)) min"
    } | tee "$run_folder/summary.txt"
}

(($#)) && [[ $1 != -* ]] || usage
images=$1
shift
if [[ ${1:-} == --no-tests ]]; then
    tests="left out"
    shift
fi
if [[ -e $images ]]; then images=$(realpath "$images"); fi
mkdir -p "$run_folder"
run_folder=$(cd "$run_folder" && pwd)
cd "$repo"

if [[ $tests != "left out" ]]; then run_tests; fi
write_betons
train "$@"
evaluate
summarize
[[ $tests != failed ]]
