#!/usr/bin/env bash
#
# The one-hour validation on one GPU: run the GPU tests, write 25,000 images, train, evaluate. 'python -m rebar.aws launch
# validate' runs it on an EC2 instance. A repeated call continues after the last completed step.
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

  IMAGES               --data-dir of write_dataset.py, such as hf:imagenet-1k, or a folder with .beton files
  --no-tests           skip the GPU tests
  RUN_FOLDER=PATH      output: summary.txt, gpu_tests.txt, training/, evaluation.txt
  DATA_FOLDER=PATH     folder on a fast disk for the .beton files
  TRAIN_IMAGES, VAL_IMAGES   number of images (default 25000 and 5000)
  RESET_SCHED=1, FREEZE_LR=1, FREEZE_LR_VALUE=RATE: see docs/resume.md

example: $0 hf:imagenet-1k
TEXT
    exit 2
}

# heading TEXT: print a step and the time since the start.
heading() { printf '\n== %s  (%d:%02d min)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

run_tests() {
    heading "Run the GPU tests"
    ./scripts/test.sh -m gpu >"$run_folder/gpu_tests.txt" 2>&1 || tests=failed
    tail -n 1 "$run_folder/gpu_tests.txt"
}

write_betons() {
    local split
    local -A images_of=([train]=${TRAIN_IMAGES:-25000} [val]=${VAL_IMAGES:-5000})
    mkdir -p "$work"
    for split in train val; do
        heading "Write ${images_of[$split]} images to $split.beton"
        if [[ -f $work/$split.beton ]]; then
            echo "exists already"
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
        echo "finished already"
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
        echo "total       $((SECONDS / 60)) min"
    } | tee "$run_folder/summary.txt"
}

(($#)) && [[ $1 != -* ]] || usage
images=$1
shift
if [[ ${1:-} == --no-tests ]]; then
    tests="skipped"
    shift
fi
if [[ -e $images ]]; then images=$(realpath "$images"); fi
mkdir -p "$run_folder"
run_folder=$(cd "$run_folder" && pwd)
cd "$repo"

if [[ $tests != "skipped" ]]; then run_tests; fi
write_betons
train "$@"
evaluate
summarize
[[ $tests != failed ]]
