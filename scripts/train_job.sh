#!/usr/bin/env bash
#
# A training as a job of AWS Batch, SageMaker or SkyPilot: data to this node's disk, what an earlier attempt left in
# S3, training on all GPUs, checkpoints and log to S3 meanwhile and at the end.
#
#   scripts/train_job.sh --config-file rn50_configs/g5_4gpu.yaml [flags of train_imagenet.py]
#
# From the environment:
#   DATA         s3:// folder with train.beton and val.beton; without it they lie in DATA_FOLDER already
#   DATA_FOLDER  a folder on a fast disk (default: data/ in the repository)
#   RUN_PLACE    s3://bucket/prefix/RUN, where checkpoints and log are kept; without it nothing is uploaded
#   RUN_FOLDER   the run's folder here (default: runs/ and the last part of RUN_PLACE)
#
# Exit status: 0 finished; 75 interrupted, all is saved, start it again; any other: failed.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"
data_folder=${DATA_FOLDER:-$repo/data}
run_folder=${RUN_FOLDER:-$repo/runs/$(basename "${RUN_PLACE:-job}")}
python=$repo/.venv/bin/python
[[ -x $python ]] || python=python3
training='' uploader=''

(($#)) || { echo "usage: $0 --config-file FILE [flags of train_imagenet.py]" >&2; exit 2; }

stage_data() {
    local name
    [[ -n ${DATA:-} ]] || return 0
    for name in train.beton val.beton; do
        "$python" -m rebar.cloud data stage "${DATA%/}/$name" "$data_folder/$name"
    done
}

# All nodes take what S3 has, so that they begin alike. An earlier attempt's status would be taken for this one's.
bring_back() {
    mkdir -p "$run_folder"
    if [[ -n ${RUN_PLACE:-} ]]; then "$python" -m rebar.cloud run fetch "$RUN_PLACE" "$run_folder" --replace; fi
    rm -f "$run_folder/status.json"
}

is_first_node() {
    [[ $(scripts/torchrun_from_env.sh --print) =~ node_rank=([0-9]+) ]] || return 0
    ((BASH_REMATCH[1] == 0))
}

uploads() {
    [[ -n ${RUN_PLACE:-} ]] && is_first_node
}

upload() {
    [[ -f $run_folder/checkpoints/last.pt && -f $run_folder/status.json ]] || return 0  # it had not begun
    "$python" -m rebar.cloud run upload "$run_folder" "$RUN_PLACE"
}

upload_now_and_then() {
    while sleep "${UPLOAD_SECONDS:-60}" >/dev/null 2>&1; do
        upload || echo "uploading failed; trying again in a minute" >&2
    done
}

# wait returns early when a signal has been passed on.
train() {
    local status
    scripts/torchrun_from_env.sh train_imagenet.py "$@" --data.train_dataset "$data_folder/train.beton" \
        --data.val_dataset "$data_folder/val.beton" --logging.folder "$run_folder" &
    training=$!
    trap 'kill -TERM "$training" 2>/dev/null || true' TERM INT
    while true; do
        status=0
        wait "$training" || status=$?
        kill -0 "$training" 2>/dev/null || break
    done
    return "$status"
}

# torchrun answers 1 whatever happened; the run's status says what it was.
was_interrupted() {
    grep -q '"state": "interrupted"' "$run_folder/status.json" 2>/dev/null
}

stage_data
bring_back
if uploads; then
    upload_now_and_then &
    uploader=$!
fi
status=0
train "$@" || status=$?
if ((status)) && was_interrupted; then status=75; fi
if [[ -n $uploader ]]; then
    kill "$uploader" 2>/dev/null || true
    wait "$uploader" 2>/dev/null || true
    upload || { sleep "${RETRY_SECONDS:-5}"; upload; } || { echo "error: the run could not be uploaded to $RUN_PLACE" >&2; status=1; }
fi
exit "$status"
