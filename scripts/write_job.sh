#!/usr/bin/env bash
#
# One part of a .beton, as a task of an array job of AWS Batch: written to this node's disk, then brought to S3.
#
#   scripts/write_job.sh --data-dir s3://my-bucket/imagenet --split train [flags of write_dataset.py]
#
# From the environment:
#   SHARDS                     how many parts there are
#   AWS_BATCH_JOB_ARRAY_INDEX  which of them this is, from 0 on; AWS Batch sets it
#   RESULTS                    s3:// folder for the parts
#   WORK_FOLDER                a folder with room for a part (default: data/ in the repository)
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"
python=$repo/.venv/bin/python
[[ -x $python ]] || python=python3
: "${SHARDS:?how many parts there are}" "${RESULTS:?an s3:// folder for the parts}"
folder=${WORK_FOLDER:-$repo/data}/part-${AWS_BATCH_JOB_ARRAY_INDEX:-0}

mkdir -p "$folder"
"$python" write_dataset.py "$@" --shard "${AWS_BATCH_JOB_ARRAY_INDEX:-0}/$SHARDS" --write-path "$folder/"
"$python" -m rebar.aws data send "$folder"/*.beton "$folder"/*.beton.json "$RESULTS"
