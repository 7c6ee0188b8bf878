# SPDX-License-Identifier: Apache-2.0
"""Who may import what, where import-linter cannot see it: extension modules and single names."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python/vision_accel"


def imports(file: Path) -> set[str]:
    """Absolute dotted names of everything that a file imports or reaches through an attribute of torch."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.library":
            found.add("torch.library")
    return found


def files_importing(name: str) -> set[str]:
    matches = {}
    for file in PACKAGE.rglob("*.py"):
        if any(i == name or i.startswith(name + ".") for i in imports(file)):
            matches[file.relative_to(PACKAGE).as_posix()] = True
    return set(matches)


def test_only_ops_call_the_core():
    outside = {f for f in files_importing("vision_accel._C") if not f.startswith("ops/")}
    assert outside <= {"__init__.py", "_info.py"}


def test_only_register_touches_torch_library():
    assert files_importing("torch.library") == {"ops/_register.py"}


def test_package_import_does_not_need_torch():
    top = {i for f in ("__init__.py", "_info.py") for i in imports(PACKAGE / f)}
    assert not {i for i in top if i.split(".")[0] == "torch"}


# C++: a directory may include only those listed; CMake targets do not stop an #include.
ARROWS = {
    "core": {"core"},
    "kernels": {"core", "kernels"},
    "runtime": {"core", "kernels", "runtime"},
    "bindings": {"core", "kernels", "runtime", "bindings"},
}

# What the emulator of GPU kernels needs: included only where VISION_ACCEL_SIMT is set.
TEST_BUILDS = {"simt/emulator.h", "simt/hopper.h", "simt/selftest.h"}


@pytest.mark.parametrize("room", ARROWS)
def test_cpp_arrows(room):
    for file in (ROOT / "csrc" / room).rglob("*"):
        if file.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        text = file.read_text()
        included = re.findall(r'^\s*#include "([^"]+)"', text, flags=re.M)
        wrong = [i for i in included if i.split("/")[0] not in ARROWS[room] and i not in TEST_BUILDS]
        assert not wrong, f"{file.relative_to(ROOT)} includes {wrong}"
        if room != "bindings":
            assert not re.search(r"#include <(pybind11|Python|torch|ATen)", text), f"{file.relative_to(ROOT)}"


def test_every_source_includes_its_own_header_first():
    for file in (ROOT / "csrc").rglob("*.c*"):
        header = file.with_suffix(".h")
        base = re.sub(r"_(cpu|cuda|sm\d+)$", "", file.stem)
        if not header.exists():
            header = file.with_name(base + ".h")
        first = re.search(r'^#include [<"]([^>"]+)[>"]', file.read_text(), flags=re.M)
        if file.suffix in {".cpp", ".cu"} and header.exists():
            assert first
            expected = header.relative_to(ROOT / "csrc").as_posix()
            assert first[1] == expected, f"{file.relative_to(ROOT)} includes {first[1]} before {expected}"
