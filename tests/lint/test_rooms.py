# SPDX-License-Identifier: Apache-2.0
"""One op, six rooms, one name: every op has all of its files and entries, and no room is left over."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPS = re.findall(r"^va_add_op\((\w+)", (ROOT / "csrc/CMakeLists.txt").read_text(), flags=re.M)

ROOMS = [
    "csrc/kernels/{op}/{op}.h",
    "csrc/kernels/{op}/{op}.cpp",
    "csrc/kernels/{op}/{op}_cpu.cpp",
    "csrc/bindings/{op}.cpp",
    "python/vision_accel/ops/{op}.py",
    "tests/ops/test_{op}.py",
    "bench/ops/bench_{op}.py",
]
ENTRIES = {
    "csrc/bindings/register.h": r"void register_{op}\(",
    "csrc/bindings/module.cpp": r"va::register_{op}\(m\);",
    "python/vision_accel/ops/__init__.py": r"\b{op} import|import_module.*{op}|\"{op}\"",
    "python/vision_accel/testing/reference.py": r"^def {op}\w*\(",
}
# Files beside the ops' own that do not belong to one op.
SHARED = {
    "csrc/kernels/*": {"common"},
    "csrc/bindings/*.cpp": {"module", "runtime", "tensor_caster"},
}


def test_there_are_ops():
    assert "layer_norm" in OPS
    assert len(set(OPS)) == len(OPS)


@pytest.mark.parametrize("op", OPS)
def test_every_room_is_there(op):
    missing = [room.format(op=op) for room in ROOMS if not (ROOT / room.format(op=op)).exists()]
    for file, pattern in ENTRIES.items():
        if not re.search(pattern.format(op=op), (ROOT / file).read_text(), flags=re.M):
            missing.append(f"the entry of {op} in {file}")
    assert not missing, f"{op} lacks " + ", ".join(missing)


@pytest.mark.parametrize("room", ["csrc/kernels/*", "csrc/bindings/*.cpp"])
def test_no_room_without_op(room):
    left = {p.stem for p in ROOT.glob(room)} - set(OPS) - SHARED[room]
    assert not left, f"{room}: {sorted(left)} belong to no va_add_op in csrc/CMakeLists.txt"


@pytest.mark.parametrize(
    ("room", "prefix"),
    [("python/vision_accel/ops/*.py", ""), ("tests/ops/*.py", "test_"), ("bench/ops/*.py", "bench_")],
)
def test_every_op_file_has_an_op(room, prefix):
    names = {p.stem.removeprefix(prefix) for p in ROOT.glob(room) if not p.stem.startswith("_")}
    left = names - set(OPS)
    assert not left, f"{room}: {sorted(left)} are no op of csrc/CMakeLists.txt"
