#!/usr/bin/env bash
#
# Resolve pyproject.toml to exact versions with hashes, for Python 3.10 to 3.13:
#
#   ./scripts/lock.sh             writes scripts/requirements.txt and scripts/requirements-dev.txt
#   ./scripts/lock.sh --upgrade   also upgrades to the newest allowed versions
#
# Then copy the versions of direct dependencies to environment.yml: tests/test_environment.py compares them.
# Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# torch is installed separately (scripts/requirements-torch.txt), with these packages.
with_torch='torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+'

# lock OUTPUT OPTIONS...: two passes, because uv needs the names of the packages to omit.
lock() {
    local output=$1 name
    local -a options=(pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header
        --constraints scripts/requirements-torch.txt "${@:2}")
    local -a leave_out=()
    for name in $(uv "${options[@]}" | grep -oE "^($with_torch)==" | tr -d = | sort -u); do
        [[ $name == nvidia-ml-py ]] || leave_out+=(--no-emit-package "$name")
    done
    echo "# Written by scripts/lock.sh from pyproject.toml and scripts/requirements.in." >"$output.new"
    uv "${options[@]}" "${leave_out[@]}" --generate-hashes >>"$output.new"
    mv "$output.new" "$output"
}

inputs=(pyproject.toml scripts/requirements.in)
base=(--extra wandb --extra aws --extra hf --extra ilsvrc)
if [[ ${1:-} != --upgrade && -s scripts/requirements.txt ]]; then  # keep the current versions
    kept=$(mktemp)
    trap 'rm -f "$kept"' EXIT
    grep -hE '^[A-Za-z0-9_.-]+(\[.*\])?==' scripts/requirements.txt scripts/requirements-dev.txt |
        sed 's/\\$//; s/\[[^]]*\]//' | sort -u >"$kept"
    base+=(--constraints "$kept")
fi
lock scripts/requirements.txt "${inputs[@]}" "${base[@]}"
lock scripts/requirements-dev.txt "${inputs[@]}" "${base[@]}" --extra onnx --extra dev
