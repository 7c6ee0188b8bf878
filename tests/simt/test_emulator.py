# SPDX-License-Identifier: Apache-2.0
"""The emulator must see what it is there to see."""

import pytest

from vision_accel import _C


def test_right_kernel_passes():
    _C.simt_selftest("none")
    _C.simt_selftest("none on Hopper")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("missing barrier", "race: read of shared byte"),
        ("overwrite while read", "race: "),
        ("out of bounds", "shared memory access at byte"),
        ("read before write", "read before it was written"),
        ("unfinished copy", "read before it was written"),
        ("divergent barrier", "deadlock"),
        ("divergent shuffle", "deadlock"),
        ("too few bytes", "deadlock"),
        ("strip not waited for", "read before it was written"),
        ("strip overwritten while read", "race: copy to shared byte"),
        ("misaligned", "misaligned 16-byte access"),
    ],
)
def test_mistakes_are_reported(mistake, message):
    with pytest.raises(ValueError, match=message):
        _C.simt_selftest(mistake)
