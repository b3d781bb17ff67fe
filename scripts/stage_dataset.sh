#!/usr/bin/env bash
#
# Copy .beton files to a fast disk, in parallel and verified; again: goes on, or finds them whole.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat >&2 <<TEXT
usage: $0 SRC DST [--num-workers N]

  SRC  a .beton file, or a folder of them
  DST  the folder to copy to

example: $0 /mnt/ebs/imagenet /mnt/nvme/imagenet
TEXT
    exit 2
}

(($# >= 2)) || usage
python=$repo/.venv/bin/python
[[ -x $python ]] || python=python3
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m rebar.beton.staging "$@"
