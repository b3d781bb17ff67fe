#!/usr/bin/env bash
#
# Set up Rebar: .venv in the repository, pinned Python packages, FFCV, compiled kernels.
#
#   ./scripts/setup.sh              packages for training
#   ./scripts/setup.sh --dev        also packages for ./scripts/test.sh
#   PYTHON=python3.12 ./scripts/setup.sh
#
# Installs only what is missing. When everything is installed it takes seconds and needs neither root nor network.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$repo/.venv
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/rebar
log=$cache/setup.log
torch_pins=$repo/scripts/requirements-torch.txt

# A user's pip configuration may set options that fail in a virtual environment.
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '   %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$1" >&2
    shift
    if (($#)); then printf '       %s\n' "$@" >&2; fi
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Print the elapsed time and the last line of the log at intervals.
report_progress() {
    local start=$SECONDS pause=30 format='   … %4d s  %s\n'
    if [[ -t 1 ]]; then pause=1 format='\r\033[K   … %4d s  %s'; fi
    # sleep outlives its parent: it must keep neither the output nor the lock open
    while sleep "$pause" >/dev/null 2>&1 9>&- && kill -0 $$ 2>/dev/null; do
        # shellcheck disable=SC2059  # the format is one of the two above
        printf "$format" $((SECONDS - start)) "$(tail -n 1 "$log" | tr -d '\r' | cut -c 1-90)"
    done
}

# try_logged TITLE COMMAND...: run a command with its output in the log; return its exit status.
try_logged() {
    local title=$1 status=0 reporter
    shift
    say "$title"
    printf '\n## %s\n' "$title" >>"$log"
    report_progress &
    reporter=$!
    # shellcheck disable=SC2064  # expand the variable now
    trap "kill $reporter 2>/dev/null || true" EXIT
    "$@" >>"$log" 2>&1 || status=$?
    kill "$reporter" 2>/dev/null || true
    wait "$reporter" 2>/dev/null || true
    trap - EXIT
    if [[ -t 1 ]]; then printf '\r\033[K'; fi
    return "$status"
}

# run_logged TITLE COMMAND...: the same, but a failure prints the end of the log and exits.
run_logged() {
    try_logged "$@" && return
    printf '\n' >&2
    tail -n 15 "$log" >&2
    die "failed: $1." "The lines above are the end of $log."
}

# ---------------------------------------------------------------------------- Python

python_fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

has_venv_module() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# Print the first supported Python, preferring one that has the venv module.
find_python() {
    local candidate test
    for test in has_venv_module python_fits; do
        for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
            if python_fits "$candidate" && "$test" "$candidate"; then echo "$candidate" && return; fi
        done
    done
    return 1
}

create_venv() {
    local python
    if python_fits "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
    if "$venv/bin/python" -c '' 2>/dev/null && ! python_fits "$venv/bin/python"; then
        die ".venv holds Python $(python_version "$venv/bin/python"); Rebar needs 3.10 to 3.13." \
            "Remove $venv and start this script again."
    fi
    if ! python=$(find_python); then
        [[ -z ${PYTHON:-} ]] || die "PYTHON=$PYTHON is not a Python from 3.10 to 3.13."
        run_logged "installing Python" "$repo/scripts/install_system_packages.sh" python3 python3-venv
        python=$(find_python) || die "found no Python from 3.10 to 3.13." \
            "Install one and name it: PYTHON=/path/to/python3.12 $0" "or use conda: see the top of environment.yml."
    fi
    has_venv_module "$python" || run_logged "installing the venv module" \
        "$repo/scripts/install_system_packages.sh" "python$(python_version "$python")-venv"
    run_logged "creating .venv with Python $(python_version "$python")" "$python" -m venv --clear "$venv"
}

# ---------------------------------------------------------------------------- Python packages

pip_install() { "$venv/bin/python" -m pip install --progress-bar off "$@"; }

# PyPI's torch is built for the newest CUDA. That is 2.5 GB larger than needed without a GPU, and does not support older
# drivers and GPUs. Print the matching indexes of download.pytorch.org, best first; none if PyPI's build fits.
torch_index_names() {
    local capability cuda
    if ! have nvidia-smi && [[ ! -e /dev/nvidia0 ]]; then
        echo cpu
        return
    fi
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -n | head -n 1 || true)
    cuda=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9]*\)\.\([0-9][0-9]*\).*/\1\2/p' || true)
    if [[ $capability =~ ^[567]\. && $capability != 7.5 ]]; then
        echo cu126  # CUDA 13 dropped Volta and older
    elif [[ -n $cuda ]] && ((cuda < 130)); then
        if ((cuda >= 128)); then echo cu128; fi
        echo cu126
    fi
}

# Print the first of those indexes that has the pinned torch and answers within three seconds.
torch_index() {
    local name version
    version=$(sed -n 's/^torch==//p' "$torch_pins")
    for name in $(torch_index_names); do
        if timeout 5 "$venv/bin/python" - "https://download.pytorch.org/whl/$name" "$version" <<'PY' 2>/dev/null
import sys, urllib.request
index, version = sys.argv[1:]
page = urllib.request.urlopen(f"{index}/torch/", timeout=3).read().decode()
sys.exit(f"torch-{version}" not in page)
PY
        then
            echo "https://download.pytorch.org/whl/$name"
            return
        fi
    done
}

# Content of a stamp file: it changes with the requirements, the Python and the folder.
fingerprint() { { cat "$1" "$torch_pins" "$repo/pyproject.toml"; echo "$repo"; "$venv/bin/python" -VV; } | sha256sum; }

install_packages() {
    local requirements=$1 stamp index
    local -a options=()
    stamp=$venv/.$(basename "$requirements" .txt).stamp
    if [[ -f $stamp && $(<"$stamp") == "$(fingerprint "$requirements")" ]]; then return; fi
    index=$(torch_index)
    if [[ -n $index ]]; then options=(--extra-index-url "$index"); fi
    run_logged "torch${index:+ from $index} (the first time, several minutes)" \
        pip_install "${options[@]}" --requirement "$torch_pins"
    run_logged "packages of scripts/$(basename "$requirements")" pip_install --no-deps --requirement "$requirements"
    run_logged "rebar" pip_install --no-deps --no-build-isolation --editable "$repo"
    fingerprint "$requirements" >"$stamp"
}

# Real images for the quick start and the tests. They are downloaded if this package cannot be installed.
install_fashion_mnist() {
    if [[ -d /usr/share/datasets/fashion-mnist || -f $venv/.requirements.stamp ]] || ! have apt-get; then return; fi
    try_logged "installing dataset-fashion-mnist" "$repo/scripts/install_system_packages.sh" dataset-fashion-mnist ||
        say "not installed; the images are downloaded when needed"
}

main() {
    local requirements=requirements
    case ${1:-} in
        "") ;;
        --dev) requirements="requirements-dev" ;;
        *) die "unknown option $1" "usage: ./scripts/setup.sh [--dev]" ;;
    esac
    [[ $(uname -s) == Linux ]] || die "Rebar runs on Linux only (FFCV and NVIDIA's libraries do)."
    mkdir -p "$cache"
    if have flock; then  # only one set-up may write to .venv at a time
        exec 9>"$cache/setup.lock"
        flock --nonblock 9 || { say "waiting for another set-up to finish"; flock 9; }
    fi
    : >"$log"
    cd "$repo"
    create_venv
    install_fashion_mnist
    install_packages "$repo/scripts/$requirements.txt"
    if [[ $requirements == requirements-dev ]] && ! have aria2c; then  # the tests download with it
        try_logged "installing aria2" "$repo/scripts/install_system_packages.sh" aria2 || say "not installed"
    fi
    try_logged "FFCV (built from source the first time, a minute)" "$repo/scripts/build_ffcv.sh" "$cache" ||
        say "FFCV is not installed: FFCV pipelines are unavailable, everything else works. See the end of $log"
    "$venv/bin/python" -m rebar.jpeg ||
        say "the fast JPEG kernels do not compile here: images are decoded in full, which is slower"
    "$venv/bin/python" -m rebar.doctor --quiet || die "Rebar cannot run yet: see the lines above." \
        "If packages are missing: rm $venv/.*.stamp and start this script again."
    say "ready: Python $(python_version "$venv/bin/python") in $venv"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
