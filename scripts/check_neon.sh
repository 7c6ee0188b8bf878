#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the core for aarch64 and runs the C++ tests (tests/cpp) there, under an emulator unless this is aarch64.
#   scripts/check_neon.sh [build folder]
set -eu
cd "$(dirname "$0")/.."
build=${1:-build/neon}

if [ "$(uname -m)" = aarch64 ]; then
  prefix= emulator=
else
  prefix=aarch64-linux-gnu- emulator=qemu-aarch64-static
fi
missing=
for tool in "${prefix}g++:g++-aarch64-linux-gnu" "${prefix}objdump:binutils-aarch64-linux-gnu" \
  "${emulator:-cmake}:qemu-user-static" "cmake:cmake"; do
  command -v "${tool%%:*}" >/dev/null || missing="$missing ${tool##*:}"
done
if [ -n "$missing" ]; then
  echo "check_neon: these Debian or Ubuntu packages are missing:$missing" >&2
  exit 1
fi

cmake -S . -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER="${prefix}g++" -DVISION_ACCEL_PYTHON=OFF -DVISION_ACCEL_CUDA=OFF >/dev/null
cmake --build "$build" --parallel "$(nproc)"

library=$build/csrc/libvision_accel.so
fused=$("${prefix}objdump" -d "$library" | grep -c 'fmla.*\.4s' || true)
echo "check_neon: $fused vector multiply-adds (fmla v.4s) in the library"
[ "$fused" -ge 100 ] || { echo "check_neon: the kernels are not vectorised" >&2; exit 1; }

case $build in /*) ;; *) build=$PWD/$build ;; esac
"${prefix}g++" -std=gnu++17 -O1 -ffp-contract=off -Wno-psabi -Wno-ignored-attributes -pthread -I. -Icsrc \
  tests/cpp/*.cpp -L"$build/csrc" -lvision_accel -Wl,-rpath,"$build/csrc" -o "$build/tests"
if [ -n "$emulator" ]; then
  # The emulator looks for the aarch64 C library in the cross compiler's folder.
  "$emulator" -L /usr/aarch64-linux-gnu "$build/tests"
else
  "$build/tests"
fi
