# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from bench.common import Workload
from vision_accel import ops
from vision_accel.testing import reference

# Height and width, input and output channels of Stable Diffusion's decoder for a latent of 32 x 32.
SHAPES = {
    "512, 32 px": {"size": 32, "c": 512, "n": 512},
    "512, 64 px": {"size": 64, "c": 512, "n": 512},
    "512 -> 256, 128 px": {"size": 128, "c": 512, "n": 256},
    "256, 128 px": {"size": 128, "c": 256, "n": 256},
    "128, 256 px": {"size": 256, "c": 128, "n": 128},
    "128 -> 3, 256 px": {"size": 256, "c": 128, "n": 3},
}
CASES = SHAPES | {
    "128, 256 px, stride 2": {"size": 256, "c": 128, "n": 128, "stride": 2},
    "512 -> 256, 1 x 1, 128 px": {"size": 128, "c": 512, "n": 256, "kernel": 1},
    "512, 32 -> 64 px, upsampled": {"size": 32, "c": 512, "n": 512, "upsample": True},
    "256, 128 -> 256 px, upsampled": {"size": 128, "c": 256, "n": 256, "upsample": True},
    "256, 128 px, backward": {"size": 128, "c": 256, "n": 256, "backward": True},
    "512, 32 px, backward": {"size": 32, "c": 512, "n": 512, "backward": True},
}


def make(
    size: int,
    c: int,
    n: int,
    kernel: int = 3,
    stride: int = 1,
    upsample: bool = False,
    backward: bool = False,
) -> Workload:
    x, bias = torch.randn(1, size, size, c), torch.randn(n)
    weight = torch.randn(n, c, kernel, kernel) / (c * kernel**2) ** 0.5
    plain = weight.contiguous(memory_format=torch.channels_last)
    leaves = [x, weight, bias]
    padding = (0, 1, 0, 1) if stride == 2 else kernel // 2
    scale = 2 if upsample else 1
    pixels = (size * scale // stride) ** 2
    flops = 2.0 * pixels * kernel**2 * c * n

    def call(module, w):
        if upsample:
            return lambda: module.upsample_conv2d(x, w, bias)
        return lambda: module.conv2d(x, w, bias, stride=stride, padding=padding)

    if not backward:
        with torch.no_grad():
            return Workload(call(ops, weight), {"torch": call(reference, plain)}, flops=flops)
    plain = plain.requires_grad_()
    for t in leaves:
        t.requires_grad_()
    dy = torch.randn(1, size, size, n)

    def grads(module, w):
        y = call(module, w)()
        return lambda: torch.autograd.grad(y, [x, w, bias], dy, retain_graph=True)

    return Workload(grads(ops, weight), {"torch": grads(reference, plain)}, flops=2 * flops)


@pytest.mark.parametrize("case", CASES)
def bench_conv2d(measure, case):
    measure(make(**CASES[case]))
