# SPDX-License-Identifier: Apache-2.0
"""Every test here runs the CUDA kernels on CPU tensors, through the emulator."""

from collections.abc import Iterator

import pytest

from vision_accel import _C


@pytest.fixture(autouse=True)
def _simt() -> Iterator[None]:
    if not hasattr(_C, "set_simt_mode"):
        pytest.skip("this build has no VISION_ACCEL_SIMT")
    _C.set_simt_mode(True)
    yield
    _C.set_simt_mode(False)
