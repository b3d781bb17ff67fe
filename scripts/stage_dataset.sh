#!/usr/bin/env bash
#
# Copy .beton files to a fast disk: parallel, verified, resumable.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat >&2 <<TEXT
usage: $0 SOURCE TARGET [--num-workers N] [--overwrite]

  SOURCE  a .beton file, or a folder of them; s3://BUCKET/FILE.beton, or s3://BUCKET/PREFIX with train.beton and val.beton
  TARGET  the folder to copy to; created if missing

  --overwrite  replace files with other content

examples: $0 /mnt/ebs/imagenet /mnt/nvme/imagenet
          $0 s3://my-bucket/betons /mnt/nvme/imagenet
TEXT
    exit 2
}

(($# >= 2)) || usage
python=$repo/.venv/bin/python
[[ -x $python ]] || python=python3
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
[[ $1 == s3://* ]] || exec "$python" -m rebar.beton.staging "$@"

source=${1%/} target=${2%/} options=("${@:3}")
objects=("$source")
[[ $source == *.beton ]] || objects=("$source/train.beton" "$source/val.beton")
mkdir -p "$target"
for object in "${objects[@]}"; do
    "$python" -m rebar.aws data stage "$object" "$target/${object##*/}" "${options[@]/#--num-workers/--workers}"
done
