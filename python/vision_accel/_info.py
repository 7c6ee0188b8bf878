# SPDX-License-Identifier: Apache-2.0
"""What this build and this machine can do."""

import platform
import sys
from typing import Any

from vision_accel import _C


def info() -> dict[str, Any]:
    """Describe the build, the instruction set in use, threads, CUDA and the versions around it.

    Never imports torch: its devices are listed only when it has been imported already.
    """
    from importlib import metadata  # noqa: PLC0415  (slow to import)

    torch = sys.modules.get("torch")
    try:
        torch_version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch_version = "not installed"
    gpus = []
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "version": _C.version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "isa": _C.active_isa(),
        "available_isas": _C.available_isas(),
        "threads": _C.max_threads(),
        "threading": _C.threading_backend(),
        "cuda": _C.cuda_status(),
        "gpus": gpus,
        "torch": torch_version,
    }
