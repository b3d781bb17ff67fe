#!/usr/bin/env bash
# Collect what benchmarks/gpu_proof needs on a machine without network into .gpu/ (git-ignored, 64 MiB at most):
# the pure Python packages that are missing there, libturbojpeg, and Fashion-MNIST where Debian's package is installed.
#   benchmarks/gpu_proof_wheels.sh
#   PYTHONPATH=.gpu/site TURBOJPEG_LIBRARY=$PWD/.gpu/libturbojpeg.so.0 python -m benchmarks.gpu_proof --out proof
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .gpu/site
python -m pip install --quiet --no-deps --upgrade --target .gpu/site fastargs==1.2.0 terminaltables==3.1.10
library=$(ldconfig -p | awk '/libturbojpeg.so.0/ { print $NF; exit }')
if [[ -n $library ]]; then cp -L "$library" .gpu/; fi
data=/usr/share/datasets/fashion-mnist
if [[ -d $data ]]; then cp -r "$data" .gpu/; fi
du -sh .gpu
