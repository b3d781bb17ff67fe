#!/usr/bin/env bash
#
# From a fresh Debian or Ubuntu machine to a trained ResNet-50, with one command:
#
#   ./scripts/quickstart.sh
#   REBAR_QUICKSTART_DIR=/mnt/nvme/quickstart ./scripts/quickstart.sh
#
# Sets everything up, builds an ImageNet-shaped folder from Fashion-MNIST (70,000 images), writes train.beton and
# val.beton, trains rn50_configs/demo.yaml on the GPU, or on the CPU without one, and evaluates. The same commands train on
# ImageNet: they are printed as they run. Run the script again at any time: complete steps are skipped, and an
# interrupted training resumes.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=${REBAR_QUICKSTART_DIR:-$repo/quickstart_run}
python=$repo/.venv/bin/python
steps=6
step=0

if (($#)); then
    echo "usage: [REBAR_QUICKSTART_DIR=FOLDER] ./scripts/quickstart.sh" >&2
    exit 2
fi

# heading TEXT: print the step number, a title and the elapsed time.
heading() {
    step=$((step + 1))
    printf '\n[%d/%d] %s  (%d:%02d min)\n' "$step" "$steps" "$1" $((SECONDS / 60)) $((SECONDS % 60))
}

report_failed_step() {
    local status=$?
    ((status == 0)) || printf '\nStopped in step %d of %d. Run it again to continue from there.\n' "$step" "$steps" >&2
}
trap report_failed_step EXIT

# Print a command and run it.
run_python() {
    printf '   $ python %s\n' "$*"
    "$python" "$@"
}

# train.beton and val.beton exist only once they are complete.
write_beton() {
    local split=$1
    heading "Write the $split images to $split.beton"
    if [[ -s $work/$split.beton ]]; then
        echo "   already written: $work/$split.beton"
        return
    fi
    run_python write_dataset.py --split "$split" --data-dir "$tree" --write-path "$work/$split.beton" "${@:2}"
}

is_finished() { [[ -s $run/log.jsonl ]] && tail -n 1 "$run/log.jsonl" | grep -q '"event": "end"'; }

# A finished run starts again from scratch; an interrupted one resumes.
train() {
    local -a restart=()
    if is_finished; then restart=(--resume none --overwrite); fi
    run_python train_imagenet.py --config-file rn50_configs/demo.yaml \
        --data.train_dataset "$work/train.beton" --data.val_dataset "$work/val.beton" \
        --logging.folder "$run" "${restart[@]}"
}

# OpenMP threads wait by spinning. If other processes use the cores, this makes training on the CPU several times slower.
# A short spin costs almost nothing on an idle machine.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}

mkdir -p "$work"
work=$(cd "$work" && pwd)
tree=$work/fashion_mnist
run=$work/run
cd "$repo"

heading "Set up"
./scripts/setup.sh

heading "Build an ImageNet-shaped folder from Fashion-MNIST"
run_python scripts/build_fashion_mnist_tree.py --out "$tree"

write_beton train --subset 25000 # a subset, so that a CPU needs only minutes
write_beton val

heading "Train ResNet-50"
train

heading "Evaluate the checkpoint"
run_python evaluate.py --checkpoint "$run/checkpoints/last.pt" --data "$work/val.beton" | tee "$run/evaluation.txt"

printf '\nDone in %d:%02d min.\n' $((SECONDS / 60)) $((SECONDS % 60))
printf '   result      %s\n' "$(grep -m 1 'top-1' "$run/evaluation.txt")"
printf '   log         %s\n' "$run/log.jsonl"
printf '   plot        %s\n' "$run/plot.png"
printf '   checkpoint  %s\n' "$run/checkpoints/last.pt"
