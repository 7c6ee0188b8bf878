# SPDX-License-Identifier: Apache-2.0
"""What the ops tell torch.compile about their results on a GPU is what the kernels of the CPU give."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vision_accel import ops
from vision_accel.ops._mlp import mlp


class Recorder(TorchDispatchMode):
    """Keeps every call of an op of ours, forward and backward."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        if op.namespace == "vision_accel":
            self.calls.append((op, args, out))
        return out


def on_gpu(x):
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")


def r(*shape):
    return torch.randn(shape)


CASES = {
    "activation": ((r(3, 8, 5).transpose(1, 2),), lambda x: ops.activation(x, "gelu")),
    "attention": ((r(2, 5, 3, 16), r(2, 7, 3, 16), r(2, 7, 3, 16)), ops.attention),
    "attention_qkv": ((r(2, 5, 3 * 2 * 16),), lambda x: ops.attention_qkv(x, 2)),
    "clip_loss": ((r(5, 8), r(5, 8), torch.tensor(3.0)), ops.contrastive_loss),
    "siglip_loss": ((r(5, 8), r(5, 8), torch.tensor(3.0), torch.tensor(-1.0)), ops.contrastive_loss),
    "conv2d": (
        (r(2, 9, 8, 16), r(8, 16, 3, 3), r(8)),
        lambda *a: ops.conv2d(*a, padding=1, stride=2),
    ),
    "upsample_conv2d": ((r(2, 5, 4, 16), r(8, 16, 3, 3), r(8)), ops.upsample_conv2d),
    "cross_entropy": ((r(4, 10), torch.tensor([1, 2, 3, 4])), ops.cross_entropy),
    "group_norm": (
        (r(2, 5, 4, 16), r(16), r(16)),
        lambda x, w, b: ops.group_norm(x, 4, w, b, 1e-6, "silu"),
    ),
    "layer_norm": (
        (r(2, 5, 16), r(16), r(16), r(2, 5, 16)),
        lambda x, w, b, s: ops.layer_norm(x, w, b, residual=s),
    ),
    "linear": (
        (r(4, 2, 16).transpose(0, 1), r(8, 16), r(8), r(2, 4, 8), r(8)),
        lambda x, w, b, s, g: ops.linear(x, w, b, "gelu", s, g),
    ),
    "linear, some rows": (
        (r(3, 16), r(8, 16), r(8)),
        lambda x, w, b: ops.linear(x, w, b, rows=(2, 6)),
    ),
    "mlp": (
        (r(2, 5, 16), r(32, 16), r(32), r(16, 32), r(16), r(2, 5, 16)),
        lambda x, a, b, c, d, s: mlp(x, a, b, c, d, "gelu", s),
    ),
    "patchify": ((r(2, 3, 8, 12),), lambda x: ops.patchify(x, 4)),
    "resample": ((torch.zeros(9, 8, 3, dtype=torch.uint8),), lambda x: ops.resample(x, (5, 4)) * 1.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_results_on_a_gpu_are_described_as_the_cpu_makes_them(name, dtype):
    args, call = CASES[name]
    args = [a.to(dtype).requires_grad_() if a.is_floating_point() else a for a in args]
    with Recorder() as recorder:
        outputs = call(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if any(o.requires_grad for o in outputs):
            torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
    assert recorder.calls
    for op, inputs, out in recorder.calls:
        with FakeTensorMode():
            got = op(*tree_map_only(torch.Tensor, on_gpu, inputs))
        for g, o in zip(tree_leaves(got), tree_leaves(out), strict=True):
            assert g.device.type == "cuda", op
            assert (g.shape, g.dtype, g.stride()) == (o.shape, o.dtype, o.stride()), op
