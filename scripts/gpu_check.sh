#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Everything that needs a GPU, on a machine that has one. See --help.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'HELP'
Usage: scripts/gpu_check.sh [PART ...]        (default: build test memcheck bench)

Parts, each meant to end within 10 minutes on 16 cores; when one fails, the others still run:
  build     compiles for this machine's GPU only and installs the package, editable, into $PYTHON
  test      every test marked cuda: forward and backward against float64, odd sizes, determinism, graphs
  memcheck  a few tests of each op under compute-sanitizer
  bench     ours, torch and SDPA's back ends; writes bench/results/<gpu>.json with device, driver and commit
  peers     the same with torch.compile(mode="max-autotune") beside it: begins no case after 8 minutes, and goes
            on with those that bench/results/<gpu>.json does not have when it is run again

Needs: nvcc, cmake, ninja, compute-sanitizer (memcheck), and in $PYTHON torch, pytest, pytest-timeout,
pytest-benchmark, scikit-build-core, pybind11, and the package's own dependencies, those of its extra `train` too.
Nothing is downloaded when CUTLASS is at hand: CUTLASS_DIR, or build/cutlass-4.2.0 as a build on another machine
has left it (of that, cutlass_library/source/include is enough: 27 MB).
Where there is no network, bring the other packages as wheels and put them on PYTHONPATH:
  pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels NAME ...      (with a network)
  pip install --no-index --no-deps --target site wheels/*.whl; export PYTHONPATH=$PWD/site
A Python that belongs to a Linux distribution wants PIP_BREAK_SYSTEM_PACKAGES=1 for the part build.

Environment: PYTHON (python3), CUTLASS_DIR, CASES (text in the names of the benchmarks to run), OUT (a folder
for copies of the logs and results), VISION_ACCEL_COMMIT (where there is no .git).
HELP
}

PYTHON=${PYTHON:-python3}
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(build test memcheck bench)
for part in "${parts[@]}"; do
  case $part in
    -h | --help) usage; exit 0 ;;
    build | test | memcheck | bench | peers) ;;
    *) usage >&2; echo "gpu_check: unknown part '$part'" >&2; exit 2 ;;
  esac
done
if ! nvidia-smi >/dev/null 2>&1; then
  echo "gpu_check: no GPU on this machine (nvidia-smi does not answer)" >&2
  exit 1
fi

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
name=$(tr '[:upper:] ' '[:lower:]-' <<<"$gpu" | tr -cd 'a-z0-9-')
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
[ "$capability" = 90 ] && capability=90a
log=build/gpu_check
results=bench/results/$name.json
mkdir -p $log && rm -f $log/*.log
step() { printf '\n=== %s on %s  [%d s since the start]\n' "$1" "$gpu" "$SECONDS"; }
keep() { # also what a part that failed has left
  [ -z "${OUT:-}" ] || for file in $log/*.log "$results"; do [ ! -f "$file" ] || cp "$file" "$OUT"/; done
}
trap keep EXIT

run_part() {
  case $1 in
    build)
      "$PYTHON" -m pip --disable-pip-version-check install -q --no-build-isolation --no-deps \
        -Cbuild-dir=build/gpu -Ccmake.define.VISION_ACCEL_CUDA=ON \
        "-Ccmake.define.VISION_ACCEL_CUDA_ARCHS=$capability" \
        ${CUTLASS_DIR:+"-Ccmake.define.CUTLASS_DIR=$CUTLASS_DIR"} -e . >$log/build.log 2>&1 &&
        "$PYTHON" -c 'import torch, vision_accel as va; print(va.info())' ||
        { tail -40 $log/build.log; return 1; }
      ;;
    test)
      # Only where such tests are: others want packages that this machine may lack. Its torch may warn of more.
      "$PYTHON" -m pytest -q -m cuda -W default -p no:cacheprovider tests/cuda tests/bench 2>&1 | tee $log/test.log
      ;;
    memcheck)
      small="not 3152 and not 12608 and not 1024 and not (lengths and (577 or 144 or 257 or causal))"
      # Without torch's cache every tensor is an allocation of its own, so that a stray access is seen.
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
        "$PYTHON" -m pytest -q -x -m cuda -W default -p no:cacheprovider --timeout=580 tests/cuda \
        -k "not compile and not memory and not captur and not graph and not training and not same_bits and not parts and $small" \
        >$log/memcheck.log 2>&1 || { tail -60 $log/memcheck.log; return 1; }
      tail -3 $log/memcheck.log
      ;;
    bench) "$PYTHON" -m bench.cuda --json "$results" --case "${CASES:-}" 2>&1 | tee $log/bench.log ;;
    peers)
      "$PYTHON" -m bench.cuda --json "$results" --case "${CASES:-}" --peers --minutes 8 2>&1 | tee $log/peers.log
      ;;
  esac
}

failed=()
for part in "${parts[@]}"; do
  step "$part"
  run_part "$part" || failed+=("$part")
  [ "${failed[*]}" != build ] || break
done
step "done: ${parts[*]}"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
