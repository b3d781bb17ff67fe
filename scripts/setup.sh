#!/usr/bin/env bash
#
# Set Rebar up: system packages, .venv in the repository, pinned Python packages, FFCV.
#
#   ./scripts/setup.sh              what training needs
#   ./scripts/setup.sh --dev        also what ./scripts/test.sh needs
#   PYTHON=python3.12 ./scripts/setup.sh
#
# Does only what is missing: when all is there it takes seconds and needs neither root nor network.
set -euo pipefail

ffcv_version=1.0.2
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$repo/.venv
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/rebar
log=$cache/setup.log
requirements=$repo/scripts/requirements.txt
requirements_dev=$repo/scripts/requirements-dev.txt
fashion_mnist=/usr/share/datasets/fashion-mnist

# A user's pip configuration may ask for things that fail inside a virtual environment.
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1


# ---------------------------------------------------------------------------- telling

say() { printf '   %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$1" >&2
    shift
    local line
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

# Every few seconds, the time gone by and the last line of the log, so that nobody thinks we hang.
report_progress() {
    local began=$SECONDS pause=30 format='   … %4d s  %s\n'
    if [[ -t 1 ]]; then pause=1 format='\r\033[K   … %4d s  %s'; fi
    # sleep outlives its parent: it must hold neither our output nor our lock
    while sleep "$pause" >/dev/null 2>&1 9>&- && kill -0 $$ 2>/dev/null; do
        # shellcheck disable=SC2059  # the format is one of the two above
        printf "$format" $((SECONDS - began)) "$(tail -n 1 "$log" | tr -d '\r' | cut -c 1-90)"
    done
}

# run_logged WHAT COMMAND...: run it with its output in the log; show the log's end if it fails.
run_logged() {
    local what=$1 status=0 reporter
    shift
    say "$what"
    printf '\n## %s\n' "$what" >>"$log"
    report_progress &
    reporter=$!
    # shellcheck disable=SC2064  # this very process, not the one of a later call
    trap "kill $reporter 2>/dev/null || true" EXIT
    "$@" >>"$log" 2>&1 || status=$?
    kill "$reporter" 2>/dev/null || true
    wait "$reporter" 2>/dev/null || true
    trap - EXIT
    if [[ -t 1 ]]; then printf '\r\033[K'; fi
    if ((status)); then
        printf '\n' >&2
        tail -n 15 "$log" >&2
        printf '\n' >&2
        die "failed: $what" "The lines above are the end of $log"
    fi
}


# ---------------------------------------------------------------------------- system packages

have() { command -v "$1" >/dev/null 2>&1; }

is_debian_like() { have apt-get && have dpkg-query; }

# The smallest set FFCV builds with: of OpenCV it uses core and imgproc only, while libopencv-dev,
# which its documentation names, brings some two hundred packages.
missing_libraries() {
    have g++ || echo g++
    have pkg-config || echo pkg-config
    if [[ ! -e /usr/include/opencv4/opencv2/imgproc.hpp ]] && ! pkg-config --exists opencv4 2>/dev/null; then
        echo libopencv-core-dev
        echo libopencv-imgproc-dev
    fi
    if [[ ! -e /usr/include/turbojpeg.h ]] && ! pkg-config --exists libturbojpeg 2>/dev/null; then
        turbojpeg_package
    fi
}

# Distributions disagree about the name.
turbojpeg_package() {
    local package
    for package in libturbojpeg0-dev libturbojpeg-dev; do
        if apt-cache show "$package" >/dev/null 2>&1; then
            echo "$package"
            return
        fi
    done
    echo libturbojpeg0-dev
}

can_be_root() { [[ $(id -u) == 0 ]] || sudo -n true 2>/dev/null; }

as_root() { if [[ $(id -u) == 0 ]]; then "$@"; else sudo -n "$@"; fi; }

# The machine may have started a minute ago: its own updates can still hold dpkg's lock.
apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "$@"
}

apt_update() { as_root apt-get update || echo "apt-get update failed; going on with the lists we have"; }

install_system_packages() {
    local -a missing=("$@")
    ((${#missing[@]})) || return 0
    if ! is_debian_like; then
        die "this machine lacks ${missing[*]} (Debian's names) and has no apt-get." \
            "Install a C++ compiler, pkg-config and the headers of Python, OpenCV (core, imgproc) and turbojpeg," \
            "or use conda: environment.yml begins with the commands."
    fi
    if ! can_be_root; then
        die "system packages are missing and this user may not install them. As root, run:" \
            "apt-get update && apt-get install --yes --no-install-recommends ${missing[*]}" \
            "and start this script again."
    fi
    run_logged "updating the package lists" apt_update
    # Only now is known what turbojpeg's package is called.
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sed "s/^libturbojpeg.*/$(turbojpeg_package)/")
    run_logged "installing ${missing[*]}" apt_install "${missing[@]}"
}

# Real images for the quick start and the tests. Both find another way without them.
install_fashion_mnist() {
    if [[ -d $fashion_mnist ]] || ! is_debian_like || ! can_be_root; then return 0; fi
    if ! [[ -f $(stamp_of "$requirements") ]]; then apt_update >>"$log" 2>&1; fi  # a later run shall be quick
    if apt-cache show dataset-fashion-mnist >/dev/null 2>&1; then
        say "installing dataset-fashion-mnist"
        apt_install dataset-fashion-mnist >>"$log" 2>&1 || say "could not; the images will be downloaded when needed"
    fi
}


# ---------------------------------------------------------------------------- Python

python_fits() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

has_headers() {
    "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' \
        2>/dev/null
}

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# What apt must add to a Python so that it can build FFCV in a virtual environment. Only the
# distribution's own can be completed by apt; -venv and -dev belong to its full version number.
missing_for_python() {
    local version
    version=$(python_version "$1")
    has_venv "$1" || echo "python$version-venv"
    has_headers "$1" || echo "python$version-dev"
}

is_from_distribution() { [[ $(readlink -f "$(command -v "$1")") == /usr/bin/* ]]; }

# Print the Python to use: the first complete one, else the first that apt can complete.
find_python() {
    local candidate
    local -a candidates=(python3 python3.13 python3.12 python3.11 python3.10)
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if python_fits "$candidate" && has_venv "$candidate" && has_headers "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    for candidate in "${candidates[@]}"; do
        if python_fits "$candidate" && is_from_distribution "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

venv_works() { python_fits "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

install_system_and_python() {
    local python
    local -a missing
    mapfile -t missing < <(missing_libraries)
    if venv_works; then
        if ! has_headers "$venv/bin/python"; then
            mapfile -t -O "${#missing[@]}" missing < <(missing_for_python "$venv/bin/python")
        fi
        install_system_packages "${missing[@]}"
        return
    fi
    if "$venv/bin/python" -c '' 2>/dev/null && ! python_fits "$venv/bin/python"; then
        die ".venv holds Python $(python_version "$venv/bin/python"); Rebar needs 3.10 to 3.13." \
            "Remove $venv and start this script again."
    fi
    if python=$(find_python); then
        mapfile -t -O "${#missing[@]}" missing < <(missing_for_python "$python")
    elif [[ -n ${PYTHON:-} ]]; then
        die "PYTHON=$PYTHON cannot be used: Rebar needs Python 3.10 to 3.13 with venv and headers."
    else
        missing+=(python3 python3-venv python3-dev)
    fi
    install_system_packages "${missing[@]}"
    python=$(find_python) ||
        die "found no Python from 3.10 to 3.13 with venv and headers." \
            "Install one and name it: PYTHON=/path/to/python3.12 $0" \
            "or use conda: environment.yml begins with the commands."
    run_logged "making .venv with Python $(python_version "$python")" "$python" -m venv --clear "$venv"
}


# ---------------------------------------------------------------------------- Python packages

pip_install() { "$venv/bin/python" -m pip install --progress-bar off "$@"; }

# PyPI's torch is built for the newest CUDA. That is 2.5 GB too much where there is no GPU, and does
# not run where the driver or the GPU is older. Print the names of fitting indexes of
# download.pytorch.org, best first; none where PyPI's build is right.
torch_index_names() {
    local capability cuda
    if ! have nvidia-smi && [[ ! -e /dev/nvidia0 ]]; then
        echo cpu
        return
    fi
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -n | head -n 1 || true)
    cuda=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9]*\)\.\([0-9][0-9]*\).*/\1\2/p' || true)
    if [[ $capability =~ ^[567]\. && $capability != 7.5 ]]; then
        echo cu126  # CUDA 13 dropped Volta and what came before
    elif [[ -n $cuda ]] && ((cuda < 130)); then
        if ((cuda >= 128)); then echo cu128; fi
        echo cu126
    fi
}

# Print the first of those indexes that answers, and has our torch, within three seconds.
torch_index() {
    local name
    for name in $(torch_index_names); do
        if timeout 5 "$venv/bin/python" - "https://download.pytorch.org/whl/$name" "$(pinned torch)" <<'PY' 2>/dev/null
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

pinned() { sed -n "s/^$1==\([^;]*\).*/\1/p" "$requirements"; }

stamp_of() { echo "$venv/.$(basename "$1" .txt).stamp"; }

# What a stamp says: these requirements, installed by this Python, into this place.
fingerprint() {
    { cat "$1" "$repo/pyproject.toml"; echo "$repo"; "$venv/bin/python" -VV; } | sha256sum | cut -c 1-64
}

is_installed() {
    local stamp
    stamp=$(stamp_of "$1")
    [[ -f $stamp && $(<"$stamp") == "$(fingerprint "$1")" ]]
}

mark_installed() { fingerprint "$1" >"$(stamp_of "$1")"; }

install_packages() {
    local index
    local -a options=()
    is_installed "$requirements" && return
    index=$(torch_index)
    if [[ -n $index ]]; then
        say "torch comes from $index"
        options=(--extra-index-url "$index")
    fi
    # FFCV and Rebar are built with the installers of this environment: those come first.
    run_logged "pip, setuptools, wheel" pip_install --constraint "$requirements" pip setuptools wheel
    run_logged "packages of scripts/requirements.txt (the first time several minutes)" \
        pip_install "${options[@]}" --requirement "$requirements"
    run_logged "rebar itself" pip_install --no-deps --no-build-isolation --editable "$repo"
    mark_installed "$requirements"
}

install_dev_packages() {
    is_installed "$requirements_dev" && return
    run_logged "packages of scripts/requirements-dev.txt" pip_install --requirement "$requirements_dev"
    mark_installed "$requirements_dev"
}


# ---------------------------------------------------------------------------- FFCV

# Loading the extension is what fails when OpenCV or turbojpeg changed below it.
ffcv_works() {
    "$venv/bin/python" - "$ffcv_version" <<'PY' >>"$log" 2>&1
import ctypes, glob, importlib.metadata, importlib.util, sys
assert importlib.metadata.version("ffcv") == sys.argv[1]
folder = importlib.util.find_spec("ffcv").submodule_search_locations[0]
(extension,) = glob.glob(f"{folder}/_libffcv*.so")
ctypes.CDLL(extension)
PY
}

opencv_version() {
    local header=/usr/include/opencv4/opencv2/core/version.hpp
    if [[ -e $header ]]; then
        awk '$2 ~ /^CV_VERSION_(MAJOR|MINOR|REVISION)$/ { printf "%s%s", dot, $3; dot = "." }' "$header"
    else
        pkg-config --modversion opencv4
    fi
}

ffcv_wheel_key() {
    local tag
    tag=$("$venv/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    echo "ffcv$ffcv_version-$tag-$(uname -m)-opencv$(opencv_version)-turbojpeg$(pkg-config --modversion libturbojpeg)"
}

# build_ffcv FOLDER: FFCV includes all of OpenCV and links against all of it. Show it an OpenCV that
# consists of the two parts it uses.
build_ffcv() {
    local target=$1 shim
    shim=$(mktemp -d)
    if [[ -e /usr/include/opencv4/opencv2/imgproc.hpp ]]; then
        mkdir "$shim/opencv2"
        printf '#include <opencv2/%s.hpp>\n' core imgproc >"$shim/opencv2/opencv.hpp"
        cat >"$shim/opencv4.pc" <<PC
Name: opencv4
Description: the parts of OpenCV that FFCV uses
Version: $(opencv_version)
Cflags: -I$shim -I/usr/include/opencv4
Libs: -lopencv_imgproc -lopencv_core
PC
    fi
    # pip's own cache may hold a wheel built against other libraries: ours is the only one we trust.
    PKG_CONFIG_PATH=$shim${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH} "$venv/bin/python" -m pip wheel --no-cache-dir \
        --no-deps --no-build-isolation --no-binary ffcv --wheel-dir "$target.partial" "ffcv==$ffcv_version" ||
        return
    rm -rf "$shim" "$target"
    mv "$target.partial" "$target"
}

install_ffcv_from() { pip_install --no-deps --no-index --force-reinstall "$1"/ffcv-*.whl; }

install_ffcv() {
    if ffcv_works; then return; fi
    local wheels
    wheels=$cache/wheels/$(ffcv_wheel_key)
    if [[ -d $wheels ]]; then
        run_logged "FFCV $ffcv_version, built before" install_ffcv_from "$wheels"
        if ffcv_works; then return; fi
    fi
    mkdir -p "$cache/wheels"
    run_logged "building FFCV $ffcv_version (about a minute)" build_ffcv "$wheels"
    run_logged "installing FFCV $ffcv_version" install_ffcv_from "$wheels"
    ffcv_works || die "FFCV was built but its extension does not load." "The reason is at the end of $log"
}


# ---------------------------------------------------------------------------- all of it

# One set-up at a time: two would write into the same .venv.
lock() {
    have flock || return 0
    exec 9>"$cache/setup.lock"
    flock --nonblock 9 || { say "waiting for another set-up to end"; flock 9; }
}

# Else the first writing and the first training would wait for it.
compile_kernels() {
    "$venv/bin/python" -m rebar.jpeg ||
        say "the fast JPEG code does not compile here; images will be decoded whole, and written only raw"
}

doctor() { "$venv/bin/python" -m rebar.doctor --quiet; }

setup() {
    local dev=false
    case ${1:-} in
        "") ;;
        --dev) dev=true ;;
        *) die "unknown option $1" "usage: ./scripts/setup.sh [--dev]" ;;
    esac
    [[ $(uname -s) == Linux ]] || die "Rebar runs on Linux only (FFCV and NVIDIA's libraries do)."
    mkdir -p "$cache"
    lock
    : >"$log"
    cd "$repo"
    if ! venv_works || ! ffcv_works; then install_system_and_python; fi
    install_fashion_mnist
    install_packages
    if $dev; then install_dev_packages; fi
    install_ffcv
    compile_kernels
    if ! doctor; then
        die "Rebar cannot run yet; the lines above say why." \
            "If packages are missing: rm $venv/.*.stamp and start this script again."
    fi
    say "all is there: Python $(python_version "$venv/bin/python") in $venv"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then setup "$@"; fi
