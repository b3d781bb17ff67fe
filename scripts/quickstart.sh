#!/usr/bin/env bash
#
# From a fresh Debian or Ubuntu machine to a trained ResNet-50, with one command:
#
#   ./scripts/quickstart.sh
#   REBAR_QUICKSTART_DIR=/mnt/nvme/quickstart ./scripts/quickstart.sh
#
# Sets everything up, builds an ImageNet-shaped folder from Fashion-MNIST (70,000 images), packs it
# into train.beton and val.beton, trains rn50_configs/demo.yaml on the GPU, or the CPU if there is
# none, and evaluates. ImageNet goes the same way: the commands are printed as they run.
# May be started again at any time: what is complete is kept, interrupted training goes on.
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

# heading TEXT: the number, what happens, and the time since the start.
heading() {
    step=$((step + 1))
    printf '\n[%d/%d] %s  (%d:%02d min)\n' "$step" "$steps" "$1" $((SECONDS / 60)) $((SECONDS % 60))
}

say_where_it_stopped() {
    local status=$?
    ((status == 0)) || printf '\nStopped in step %d of %d. Start it again to go on from there.\n' "$step" "$steps" >&2
}
trap say_where_it_stopped EXIT

# Show a command, so that it can be learnt from, and run it.
run_python() {
    printf '   $ python %s\n' "$*"
    "$python" "$@"
}

# The betons appear under their names only when they are complete.
write_beton() {
    local split=$1
    heading "Pack the $split images into $split.beton"
    if [[ -s $work/$split.beton ]]; then
        echo "   there already: $work/$split.beton"
        return
    fi
    run_python write_dataset.py --split "$split" --data-dir "$tree" --write-path "$work/$split.beton" "${@:2}"
}

is_finished() { [[ -s $run/log.jsonl ]] && tail -n 1 "$run/log.jsonl" | grep -q '"event": "end"'; }

# A finished run is done anew; one that was interrupted goes on from its last checkpoint.
train() {
    local -a afresh=()
    if is_finished; then afresh=(--resume none --overwrite); fi
    run_python train_imagenet.py --config-file rn50_configs/demo.yaml \
        --data.train_dataset "$work/train.beton" --data.val_dataset "$work/val.beton" \
        --logging.folder "$run" "${afresh[@]}"
}

# OpenMP's threads wait for each other by spinning. Where something else wants a core too, training on the
# CPU then takes several times as long; spinning only briefly costs next to nothing.
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

write_beton train --subset 25000 # some of the images, so that a CPU is done in minutes
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
