# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bench.common import Workload
from vision_accel import ops
from vision_accel.testing import reference

# 8 rows of the decoder of an AutoencoderKL at 1024 pixels, between two stages. torch has no format like it:
# its copies, in float32 and with 8 bits of mantissa in bfloat16, say what the memory allows.
CASES = {
    "pack 128 channels": {"width": 1024, "channels": 128},
    "pack 512 channels": {"width": 256, "channels": 512},
    "unpack 128 channels": {"width": 1024, "channels": 128, "unpack": True},
    "unpack 512 channels": {"width": 256, "channels": 512, "unpack": True},
}


def make(width: int, channels: int, unpack: bool = False) -> Workload:
    x = torch.randn(8, width, channels)
    size = ops.block_float_bytes(width, channels)
    store, offsets = torch.empty(8 * size, dtype=torch.uint8), [i * size for i in range(8)]
    out, copy, half = torch.empty_like(x), torch.empty_like(x), x.bfloat16()
    ops.pack_block_float(x, store, offsets)
    ops.unpack_block_float(store, offsets, out)
    assert torch.equal(out, reference.block_float(x))

    def ours():
        if unpack:
            ops.unpack_block_float(store, offsets, out)
        else:
            ops.pack_block_float(x, store, offsets)
        return out

    peers = {
        "torch copy": lambda: copy.copy_(x),
        "torch bfloat16": lambda: copy.copy_(half) if unpack else half.copy_(x),
    }
    # bfloat16 decides the tolerance
    return Workload(ours=ours, peers=peers, bytes=4 * x.numel() + len(store), tolerance=4e-3)


@pytest.mark.parametrize("case", CASES)
def bench_block_float(measure, case):
    measure(make(**CASES[case]))
