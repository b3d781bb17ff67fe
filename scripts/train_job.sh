#!/usr/bin/env bash
#
# Train in a job of AWS Batch, SageMaker or SkyPilot: copy the data to this node's disk, and train on all GPUs. Training
# resumes from the checkpoint of an earlier attempt in S3, and uploads its checkpoints and log; the final upload is
# repeated here if it failed.
#
#   scripts/train_job.sh --config-file rn50_configs/g5_4gpu.yaml [flags of train_imagenet.py]
#
# Environment:
#   DATA         s3:// folder with train.beton and val.beton; default: they are in DATA_FOLDER already
#   DATA_FOLDER  folder on a fast disk (default: data/ in the repository)
#   RUN_URL    s3://bucket/prefix/RUN for checkpoints and log; default: no uploads
#   RUN_FOLDER   local run folder, must also end in RUN (default: runs/RUN)
#   RESET_SCHED, FREEZE_LR, FREEZE_LR_VALUE   see docs/resume.md
#
# Exit status: 0 finished; 75 interrupted and saved, run it again; any other: failed.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"
data_folder=${DATA_FOLDER:-$repo/data}
run_folder=${RUN_FOLDER:-$repo/runs/$(basename "${RUN_URL:-job}")}
python=$repo/.venv/bin/python
[[ -x $python ]] || python=python3
training=''
upload=()
if [[ -n ${RUN_URL:-} ]]; then upload=(--logging.upload "${RUN_URL%/*}"); fi

die() {
    echo "error: $1" >&2
    exit 2
}

(($#)) || die "usage: $0 --config-file FILE [flags of train_imagenet.py]"
if [[ -n ${RUN_URL:-} && $(basename "$run_folder") != "$(basename "$RUN_URL")" ]]; then
    die "RUN_FOLDER $run_folder and RUN_URL $RUN_URL must end in the same name"
fi

stage_data() {
    local name
    [[ -n ${DATA:-} ]] || return 0
    for name in train.beton val.beton; do
        "$python" -m rebar.aws data stage "${DATA%/}/$name" "$data_folder/$name"
    done
}

is_first_node() {
    [[ $(scripts/torchrun_from_env.sh --print) =~ node_rank=([0-9]+) ]] || return 0
    ((BASH_REMATCH[1] == 0))
}

# wait returns early after a forwarded signal; the last one returns the exit status of training.
train() {
    scripts/torchrun_from_env.sh train_imagenet.py "$@" --data.train_dataset "$data_folder/train.beton" \
        --data.val_dataset "$data_folder/val.beton" --logging.folder "$run_folder" "${upload[@]}" &
    training=$!
    trap 'kill -TERM "$training" 2>/dev/null || true' TERM INT
    while kill -0 "$training" 2>/dev/null; do wait "$training" || true; done
    wait "$training"
}

# Whether status.json is from this attempt, not from an earlier one.
has_status() {
    local modified
    modified=$(stat --format=%.9Y "$run_folder/status.json" 2>/dev/null) && ((${modified/./} >= started))
}

# torchrun exits with 1 for every failure; status.json has the state.
was_interrupted() {
    has_status && grep -q '"state": "interrupted"' "$run_folder/status.json"
}

# Training only warns if an upload fails, but the disk of this node is lost when the job ends.
upload_run() {
    [[ -n ${RUN_URL:-} && -f $run_folder/checkpoints/last.pt ]] || return 0
    has_status || return 0
    is_first_node || return 0
    "$python" -m rebar.aws run upload "$run_folder" "$RUN_URL"
}

stage_data
started=$(date +%s%N)
status=0
train "$@" || status=$?
if ((status)) && was_interrupted; then status=75; fi
upload_run || { sleep "${RETRY_SECONDS:-5}"; upload_run; } || {
    echo "error: the run could not be uploaded to $RUN_URL" >&2
    exit 1
}
exit "$status"
