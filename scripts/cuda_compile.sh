#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Compiles CUDA kernels without a GPU and without an installed toolkit (nvcc comes as Python packages) and looks
# into the machine code. Our own kernels are compiled whole, of CUTLASS's one of each kind.
# Usage: scripts/cuda_compile.sh [ARCHS], by default "80;90a".
set -euo pipefail
cd "$(dirname "$0")/.."
archs=${1:-80;90a}
venv=build/nvcc
python3 -m venv $venv
# All of one minor version: nvcc does not pin the rest of its toolkit.
$venv/bin/pip --disable-pip-version-check -qq install cmake ninja \
  nvidia-cuda-{nvcc,crt,runtime,cccl,cuobjdump,nvdisasm}==13.2.* nvidia-nvvm==13.2.*
tools=$(echo "$PWD"/$venv/lib/python3.*/site-packages/nvidia/cu13/bin)
export CUDACXX=$tools/nvcc PATH="$PWD/$venv/bin:$tools:$PATH"
cmake -S . -B build/cuda -G Ninja -DVISION_ACCEL_CUDA=ON -DVISION_ACCEL_PYTHON=OFF \
  "-DVISION_ACCEL_CUDA_ARCHS=$archs" >build/cuda-configure.log || { cat build/cuda-configure.log; exit 1; }

kernels=(sm80/bf16_kk_large sm80/f16_mm_small sm80/f32_km_loose)
[[ $archs == *90a* ]] && kernels+=(sm90/bf16_plain_medium sm90/f16_wide_large sm90/bf16_dw_large)
objects=(csrc/CMakeFiles/va_cuda.dir/kernels/conv2d/conv2d_mma_cuda.cu.o)
for kernel in "${kernels[@]}"; do
  family=${kernel%/*}
  objects+=("csrc/CMakeFiles/va_linear_$family.dir/linear/${family}_${kernel#*/}.cu.o")
done
[[ $archs == *90a* ]] && objects+=(csrc/CMakeFiles/va_attention_sm90.dir/kernels/attention/attention_{forward,backward}_sm90.cu.o)
objects+=(csrc/CMakeFiles/va_cuda.dir/kernels/attention/attention_{forward,backward}_cuda.cu.o)
rm -f "${objects[@]/#/build/cuda/}" # so that the compiler reports on them again
cmake --build build/cuda --target va_cuda "${objects[@]}" >build/cuda-build.log 2>&1 ||
  { grep -v '^ptxas info\|stack frame' build/cuda-build.log | tail -60; exit 1; }

# Kernels of f64 are for checks of gradients: one of contrastive_loss spills a few bytes around its calls of exp.
spilling=$(awk '/Compiling entry function/ { name = $0 }
  /bytes spill stores/ && !/ 0 bytes spill stores/ && name !~ /backward_rows_kernelId/ { print name; print }' build/cuda-build.log)
[ -z "$spilling" ] || { printf 'registers are spilled:\n%s\n' "$spilling" >&2; exit 1; }

# The rest of our own kernels: no tensor cores, but no local memory either.
mapfile -t others < <(cd build/cuda && find csrc/CMakeFiles/va_cuda.dir/kernels -name '*_cuda.cu.o' ! -name 'contrastive_loss*' |
  grep -vxF "$(printf '%s\n' "${objects[@]}")" | sort)
for object in "${objects[@]}" "${others[@]}"; do
  sass=$(cuobjdump --dump-sass "build/cuda/$object" | { grep -oE '\b(HGMMA|HMMA|LDL|STL)\b' || true; } | sort | uniq -c | tr -s ' \n' ' ')
  printf '%-40s%s\n' "$(basename "$object" .cu.o)" "$sass"
  wanted=HMMA
  [[ $object == *sm90* ]] && wanted=HGMMA
  [[ " ${others[*]} " == *" $object "* || $sass == *" $wanted"* ]] || { echo "no tensor-core instructions ($wanted) in $object" >&2; exit 1; }
  [[ $sass != *LDL* && $sass != *STL* ]] || { echo "local memory is used in $object" >&2; exit 1; }
done
echo "compiled $(find build/cuda -name '*.cu.o' | wc -l) CUDA files for $archs"
