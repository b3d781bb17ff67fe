#!/usr/bin/env bash
#
# Write one shard of a .beton in an array job of AWS Batch to this node's disk, and upload it to S3.
#
#   scripts/write_job.sh --data-dir s3://my-bucket/imagenet --split train [flags of write_dataset.py]
#
# Environment:
#   SHARDS                     number of shards
#   AWS_BATCH_JOB_ARRAY_INDEX  index of this shard, from 0; set by AWS Batch
#   RESULTS                    s3:// folder for the shards
#   WORK_FOLDER                folder with space for a shard (default: data/ in the repository)
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"
python=$repo/.venv/bin/python
[[ -x $python ]] || python=python3
: "${SHARDS:?number of shards}" "${RESULTS:?s3:// folder for the shards}"
folder=${WORK_FOLDER:-$repo/data}/part-${AWS_BATCH_JOB_ARRAY_INDEX:-0}

mkdir -p "$folder"
"$python" write_dataset.py "$@" --shard "${AWS_BATCH_JOB_ARRAY_INDEX:-0}/$SHARDS" --write-path "$folder/"
"$python" -m rebar.aws data send "$folder"/*.beton "$folder"/*.beton.json "$RESULTS"
