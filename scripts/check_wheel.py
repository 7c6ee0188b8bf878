# SPDX-License-Identifier: Apache-2.0
"""Check what a built CPU wheel contains, how large it is and what its libraries need."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MAX_BYTES = 3 * 2**20
REQUIRED = ["vision_accel/__init__.py", "vision_accel/py.typed", "vision_accel/_C.pyi", "licenses/LICENSE"]
FORBIDDEN = re.compile(r"(^|/)(tests?|bench|csrc|scripts)/|\.(cpp|cu|cuh|h|o|a)$|__pycache__")
# The C++ and C runtimes that every Linux system has. No OpenMP runtime, no BLAS, no torch.
ALLOWED = re.compile(
    r"(libstdc\+\+\.so\.6|lib(m|c|pthread|dl|rt)\.so\.[0-9]+|libgcc_s\.so\.1|ld-linux.*\.so\.[0-9]+|libvision_accel\.so)"
)


def problems(wheel: Path) -> list[str]:
    """Everything that is wrong with this wheel."""
    found = []
    if (size := wheel.stat().st_size) > MAX_BYTES:
        found.append(f"{size / 2**20:.2f} MB, allowed {MAX_BYTES / 2**20:.0f} MB")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        found += [f"{r} is missing" for r in REQUIRED if not any(n.endswith(r) for n in names)]
        found += [f"{n} does not belong in a wheel" for n in names if FORBIDDEN.search(n)]
        libraries = [n for n in names if n.endswith(".so")]
        if not any(Path(n).name == "libvision_accel.so" for n in libraries):
            found.append("libvision_accel.so is missing")
        for name in libraries:
            dynamic = subprocess.run(
                ["readelf", "--dynamic", archive.extract(name, folder)],
                capture_output=True,
                text=True,
                check=True,
            )
            for needed in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic.stdout):
                if not ALLOWED.fullmatch(needed):
                    found.append(f"{name} needs {needed}")
            for path in re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic.stdout):
                if path != "$ORIGIN":
                    found.append(f"{name} has the run path {path}")
    return found


if __name__ == "__main__":
    failed = False
    for argument in sys.argv[1:]:
        wheel = Path(argument)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
        for problem in problems(wheel):
            failed = True
            print(f"  {problem}")
    sys.exit(failed)
