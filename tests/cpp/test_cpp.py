# SPDX-License-Identifier: Apache-2.0
"""Builds the C++ tests of this folder against the installed core, and runs them with every ISA."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vision_accel import _C

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    libraries = Path(_C.__file__).parent
    program = tmp_path_factory.mktemp("cpp") / "vision_accel_tests"
    sources = sorted(map(str, HERE.glob("*.cpp")))
    flags = [
        "-std=gnu++17",
        "-O1",
        "-ffp-contract=off",
        "-pthread",
        "-Wall",
        "-Wextra",
        f"-I{ROOT}",
        f"-I{ROOT / 'csrc'}",
    ]
    link = [f"-L{libraries}", "-lvision_accel", f"-Wl,-rpath,{libraries}", "-o", str(program)]
    built = subprocess.run(
        [*compiler.split(), *flags, *sources, *link], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr, built.stderr
    return program


@pytest.mark.parametrize("isa", _C.available_isas())
def test_every_op_against_plain_loops(driver, isa):
    result = subprocess.run(
        [driver],
        env={**os.environ, "VISION_ACCEL_ISA": isa},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith(f"{isa}: ")


def test_every_op_has_a_test():
    ops = {p.name for p in (ROOT / "csrc/kernels").iterdir() if p.is_dir()} - {"common"}
    assert ops == {p.stem for p in HERE.glob("*.cpp")} - {"main", "math", "parallel"}
