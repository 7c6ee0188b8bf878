#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Compiles the CUDA kernels without a GPU and without an installed toolkit: nvcc comes as Python packages.
# Usage: scripts/cuda_compile.sh [ARCHS], by default "80;90a".
set -euo pipefail
cd "$(dirname "$0")/.."
venv=build/nvcc
python3 -m venv $venv
# All of one minor version: nvcc does not pin the rest of its toolkit.
$venv/bin/pip --disable-pip-version-check -qq install cmake ninja \
  nvidia-cuda-{nvcc,crt,runtime,cccl}==13.2.* nvidia-nvvm==13.2.*
CUDACXX=$(echo "$PWD"/$venv/lib/python3.*/site-packages/nvidia/cu13/bin/nvcc)
export CUDACXX PATH="$PWD/$venv/bin:$PATH"
cmake -S . -B build/cuda -G Ninja -DVISION_ACCEL_CUDA=ON -DVISION_ACCEL_PYTHON=OFF \
  "-DVISION_ACCEL_CUDA_ARCHS=${1:-80;90a}" >build/cuda-configure.log || { cat build/cuda-configure.log; exit 1; }
cmake --build build/cuda --target va_cuda >build/cuda-build.log 2>&1 ||
  { grep -v '^ptxas info\|stack frame' build/cuda-build.log | tail -60; exit 1; }
echo "compiled $(find build/cuda -name '*.cu.o' | wc -l) CUDA files for ${1:-80;90a}"
