# SPDX-License-Identifier: Apache-2.0
"""Every file: its length, its licence line, nothing of one developer's machine. One version everywhere."""

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

import vision_accel as va

ROOT = Path(__file__).parents[2]
SOURCE = {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".cmake"}
LINES, HOT_LINES = 400, 600
# Hot kernels: splitting these would part what must be read together.
HOT: set[str] = set()


def tracked() -> list[Path]:
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / f for f in git.stdout.split("\0") if f and (ROOT / f).is_file()]


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_line_budget():
    counts = {name(f): len(f.read_text().splitlines()) for f in tracked() if f.suffix in SOURCE - {".pyi"}}
    limits = {n: HOT_LINES if n in HOT else LINES for n in counts}
    over = [f"{n}: {counts[n]} lines, at most {limits[n]}" for n in sorted(counts) if counts[n] > limits[n]]
    assert not over, "\n".join(over)


def test_hot_kernels_exist_and_need_the_room():
    for n in HOT:
        assert n.startswith("csrc/kernels/"), n
        assert len((ROOT / n).read_text().splitlines()) > LINES, f"{n} needs no exception any more"


def test_licence_line():
    files = [f for f in tracked() if f.suffix in SOURCE or f.name in {"CMakeLists.txt", "Makefile"}]
    first_lines = {name(f): f.read_text().splitlines()[:2] for f in files}
    missing = [
        n for n, lines in first_lines.items() if "SPDX-License-Identifier: Apache-2.0" not in str(lines)
    ]
    assert not missing


def test_no_machine_paths():
    pattern = re.compile(r"/(home|Users|root|work|tmp)/\w")
    for file in tracked():
        if file.suffix in {".png", ".jpg"} or file == Path(__file__):
            continue
        for i, line in enumerate(file.read_text().splitlines(), 1):
            assert not pattern.search(line), f"{name(file)}:{i}: {line.strip()}"


def test_one_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.M)[1]
    assert va.__version__ == version
    assert metadata.version("vision-accel") == version
    changelog = re.search(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert changelog
    assert changelog[1] == version
