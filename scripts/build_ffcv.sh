#!/usr/bin/env bash
#
# Build FFCV from source and install it into .venv: build_ffcv.sh [CACHE_FOLDER]
#
# Needs a C++ compiler, pkg-config and the headers of Python, OpenCV and libturbojpeg; missing packages are installed
# with apt. FFCV's documentation requires libopencv-dev, which installs two hundred packages. FFCV uses only OpenCV's
# core and imgproc modules, so this script builds it against these two. Wheels are cached in CACHE_FOLDER, by the
# versions that they were built for.
set -euo pipefail

version=1.0.2
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$repo/.venv/bin/python
cache=${1:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/rebar}
header_folder=/usr/include/opencv4/opencv2

# Loading the extension fails if OpenCV or libturbojpeg were upgraded.
works() {
    "$python" - "$version" <<'PY'
import ctypes, glob, importlib.metadata, importlib.util, sys
assert importlib.metadata.version("ffcv") == sys.argv[1]
folder = importlib.util.find_spec("ffcv").submodule_search_locations[0]
(extension,) = glob.glob(f"{folder}/_libffcv*.so")
ctypes.CDLL(extension)
PY
}

has_python_headers() {
    "$python" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))'
}

install_libraries() {
    local turbojpeg=libturbojpeg0-dev  # Debian's name; Ubuntu's is libturbojpeg-dev
    local -a packages=()
    command -v g++ >/dev/null || packages+=(g++)
    command -v pkg-config >/dev/null || packages+=(pkg-config)
    [[ -e $header_folder/imgproc.hpp ]] || pkg-config --exists opencv4 2>/dev/null ||
        packages+=(libopencv-core-dev libopencv-imgproc-dev)
    if [[ ! -e /usr/include/turbojpeg.h ]] && ! pkg-config --exists libturbojpeg 2>/dev/null; then
        apt-cache show "$turbojpeg" >/dev/null 2>&1 || turbojpeg=libturbojpeg-dev
        packages+=("$turbojpeg")
    fi
    has_python_headers || packages+=("python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-dev")
    ((${#packages[@]} == 0)) || "$repo/scripts/install_system_packages.sh" "${packages[@]}"
}

opencv_version() {
    if [[ -e $header_folder/core/version.hpp ]]; then
        awk '$2 ~ /^CV_VERSION_(MAJOR|MINOR|REVISION)$/ { printf "%s%s", dot, $3; dot = "." }' \
            "$header_folder/core/version.hpp"
    else
        pkg-config --modversion opencv4
    fi
}

build() {
    local wheels=$1 shim
    shim=$(mktemp -d)
    if [[ -e $header_folder/imgproc.hpp ]]; then
        mkdir "$shim/opencv2"
        printf '#include <opencv2/%s.hpp>\n' core imgproc >"$shim/opencv2/opencv.hpp"
        cat >"$shim/opencv4.pc" <<PC
Name: opencv4
Description: the modules of OpenCV that FFCV uses
Version: $(opencv_version)
Cflags: -I$shim -I/usr/include/opencv4
Libs: -lopencv_imgproc -lopencv_core
PC
    fi
    # pip's own cache may contain a wheel built against other libraries.
    PKG_CONFIG_PATH=$shim${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH} "$python" -m pip wheel --no-cache-dir --no-deps \
        --no-build-isolation --no-binary ffcv --wheel-dir "$wheels.partial" "ffcv==$version"
    rm -rf "$shim" "$wheels"
    mv "$wheels.partial" "$wheels"
}

install() { "$python" -m pip install --no-deps --no-index --force-reinstall "$1"/ffcv-*.whl; }

works 2>/dev/null && exit 0
install_libraries
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
wheels=$cache/wheels/ffcv$version-$tag-$(uname -m)-opencv$(opencv_version)-turbojpeg$(pkg-config --modversion libturbojpeg)
if [[ -d $wheels ]]; then
    install "$wheels"
    works && exit 0
fi
mkdir -p "$cache/wheels"
build "$wheels"
install "$wheels"
works
