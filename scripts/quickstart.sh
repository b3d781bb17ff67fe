#!/usr/bin/env bash
#
# From a fresh Debian or Ubuntu machine to a trained ResNet, with one command:
#
#   ./scripts/quickstart.sh
#   REBAR_QUICKSTART_DIR=/mnt/nvme/quickstart ./scripts/quickstart.sh
#
# Sets everything up, builds an ImageNet-shaped folder from Fashion-MNIST (70,000 images), writes train.beton and
# val.beton, trains rn50_configs/demo.yaml (a small ResNet) on the GPU, or on the CPU without one, evaluates, and tries the
# ResNet-50 recipe for a few steps. The same commands train on ImageNet: they are printed as they run. After set-up, it
# takes at most about five minutes: the training is shortened on a slow machine. Run the script again at any time: complete
# steps are skipped, and an interrupted training resumes.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=${REBAR_QUICKSTART_DIR:-$repo/quickstart_run}
python=$repo/.venv/bin/python
steps=7
step=0
train_images=25000
train_epochs=3
train_seconds=135 # the time for training; fewer epochs, or fewer images, if the machine is too slow for it

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

# Measure the speed of a few steps, and write the options that keep the training within $train_seconds to $work/options.
# An interrupted run resumes with the same options.
choose_length() {
    local speed epochs images
    if [[ -s $work/options ]]; then return; fi
    # A separate folder, because the run's folder may contain checkpoints of a run with other options.
    run_python train_imagenet.py --config-file rn50_configs/demo.yaml "${data[@]}" --logging.folder "$work/dry_run" --dry-run |
        tee "$work/dry_run.txt"
    # "images/s: 1,520 at 24 px, 1,130 at 28 px": the last speed is the lowest.
    speed=$(grep '^ *images/s: ' "$work/dry_run.txt" | grep -o '[0-9,]* at [0-9]* px' | tail -n 1 | sed 's/ at.*//; s/,//g' || true)
    if [[ -z $speed ]] || ((speed == 0)); then speed=1; fi
    epochs=$((speed * train_seconds / train_images))
    if ((epochs >= train_epochs)); then
        echo "--epochs $train_epochs" >"$work/options"
    elif ((epochs > 1)); then
        echo "   $speed images/s: training is shortened from $train_epochs epochs to $epochs"
        echo "--epochs $epochs --end-ramp $((epochs - 1))" >"$work/options"
    else
        images=$((speed * train_seconds < train_images ? speed * train_seconds : train_images))
        images=$((images < 2000 ? 2000 : images))
        echo "   $speed images/s: training is shortened from $train_epochs epochs to one epoch of $images images"
        echo "--epochs 1 --min-res 28 --round-to 32 --end-ramp 0 --data-subset $images" >"$work/options"
    fi
}

# An interrupted run resumes. If all steps were completed before, a new run starts from scratch.
train() {
    local -a options restart=()
    if [[ -e $work/completed ]]; then
        restart=(--resume none --overwrite)
        rm -f "$work/options" "$work/completed"
    elif is_finished; then
        echo "   already trained: $run"
        return
    fi
    choose_length
    read -ra options <"$work/options"
    run_python train_imagenet.py --config-file rn50_configs/demo.yaml "${data[@]}" "${options[@]}" \
        --logging.folder "$run" "${restart[@]}"
}

# The ImageNet recipe at a resolution at which a CPU takes seconds.
try_resnet50() {
    run_python train_imagenet.py --config-file rn50_configs/rn50_16_epochs.yaml "${data[@]}" --batch-size 32 \
        --min-res 64 --max-res 64 --start-ramp 0 --end-ramp 0 \
        --validation.batch_size 32 --validation.resolution 64 --logging.folder "$work/resnet50" --dry-run
}

# OpenMP threads wait by spinning. If other processes use the cores, this makes training on the CPU several times slower.
# A short spin costs almost nothing on an idle machine.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}

mkdir -p "$work"
work=$(cd "$work" && pwd)
tree=$work/fashion_mnist
run=$work/run
data=(--data.train_dataset "$work/train.beton" --data.val_dataset "$work/val.beton")
cd "$repo"

heading "Set up"
./scripts/setup.sh

heading "Build an ImageNet-shaped folder from Fashion-MNIST"
run_python scripts/build_fashion_mnist_tree.py --out "$tree"

write_beton train --subset "$train_images" # a subset, so that a CPU needs only minutes
write_beton val

heading "Train a small ResNet"
train

heading "Evaluate the checkpoint"
run_python evaluate.py --checkpoint "$run/checkpoints/last.pt" --data "$work/val.beton" | tee "$run/evaluation.txt"

heading "Try the ImageNet recipe: a few steps of ResNet-50"
try_resnet50
touch "$work/completed"

printf '\nDone in %d:%02d min.\n' $((SECONDS / 60)) $((SECONDS % 60))
printf '   result      %s\n' "$(grep -m 1 'top-1' "$run/evaluation.txt")"
printf '   log         %s\n' "$run/log.jsonl"
printf '   plot        %s\n' "$run/plot.png"
printf '   checkpoint  %s\n' "$run/checkpoints/last.pt"
