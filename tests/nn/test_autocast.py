# SPDX-License-Identifier: Apache-2.0
"""Models of float32 parameters under torch.autocast: products in 16 bits, statistics in float32."""

import copy

import pytest
import torch

import vision_accel as va
from vision_accel import ops


def test_convolutions_run_in_the_dtype_of_autocast():
    x, w, b, r = torch.randn(1, 5, 4, 6), torch.randn(8, 6, 3, 3), torch.randn(8), torch.randn(1, 5, 4, 8)
    half = [t.bfloat16() for t in (x, w, b)]
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv2d(x, w, b, "silu", padding=1)
        wide = ops.conv2d(x, w, b, residual=r, padding=1)
        up = ops.upsample_conv2d(x, w, b)
        double = ops.conv2d(x.double(), w.double(), padding=1)
    assert torch.equal(y, ops.conv2d(*half, "silu", padding=1))
    assert wide.dtype == torch.float32
    assert torch.equal(wide, ops.conv2d(*half, residual=r, padding=1))
    assert torch.equal(up, ops.upsample_conv2d(*half))
    assert double.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_autoencoder_trains(dtype):
    model = va.create_model(
        "autoencoder_kl_sd", block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4
    )
    x = torch.rand(1, 3, 16, 16) * 2 - 1

    def run(model, x, enabled):
        with torch.autocast("cpu", dtype, enabled=enabled):
            y = model.decode(model.encode(x).mean, return_dict=False)[0]
        loss = (y.double() - x.double()).square().mean()
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    ours = run(model, x, True)
    truth = run(copy.deepcopy(model).double(), x.double(), False)
    for got, want in zip(ours, truth, strict=True):
        assert got.dtype != dtype
        assert (got.double() - want).abs().max() <= 0.1 * max(want.abs().max(), 1e-3)
