# SPDX-License-Identifier: Apache-2.0
from functools import partial

import pytest
import torch

from bench.common import Workload
from vision_accel import ops
from vision_accel.testing import reference

# Self-attention of whole models at their usual resolutions: ViT-S/B at 224 and 384 pixels, ViT-H/14, CLIP's
# ViT-B/32 and its text tower, the autoencoder's middle block at 256 pixels.
CASES = {
    "vit_b16 batch 1": {"batch": 1, "tokens": 197, "heads": 12},
    "vit_b16 batch 8": {"batch": 8, "tokens": 197, "heads": 12},
    "vit_b16 batch 8 bf16": {"batch": 8, "tokens": 197, "heads": 12, "dtype": torch.bfloat16},
    "vit_b16 384 batch 1": {"batch": 1, "tokens": 577, "heads": 12},
    "vit_h14 batch 1": {"batch": 1, "tokens": 257, "heads": 16, "dim": 80},
    "clip_b32 image batch 8": {"batch": 8, "tokens": 50, "heads": 12},
    "clip_b32 text batch 8": {"batch": 8, "tokens": 77, "heads": 8, "causal": True},
    "vit_b16 class token batch 8": {"batch": 8, "tokens": 197, "heads": 12, "queries": 1},
    "autoencoder_kl 256 batch 1": {"batch": 1, "tokens": 1024, "heads": 1, "dim": 512},
    "vit_b16 batch 1 forward + backward": {"batch": 1, "tokens": 197, "heads": 12, "backward": True},
    "vit_b16 batch 8 forward + backward": {"batch": 8, "tokens": 197, "heads": 12, "backward": True},
    "clip_b32 text batch 8 forward + backward": {
        "batch": 8,
        "tokens": 77,
        "heads": 8,
        "causal": True,
        "backward": True,
    },
    "autoencoder_kl 256 batch 1 forward + backward": {
        "batch": 1,
        "tokens": 1024,
        "heads": 1,
        "dim": 512,
        "backward": True,
    },
}


def make(
    batch: int,
    tokens: int,
    heads: int,
    dim: int = 64,
    queries: int | None = None,
    causal: bool = False,
    backward: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Workload:
    qkv = torch.randn(batch, tokens, 3 * heads * dim, dtype=dtype)
    flops = 4 * batch * heads * (queries or tokens) * tokens * dim / (2 if causal else 1)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    if queries:  # the last layer of an image classifier asks for its class token only
        q, k, v = qkv.unflatten(-1, (3, heads, dim)).unbind(2)
        q = q[:, :queries]
        return Workload(
            ours=lambda: ops.attention(q, k, v),
            peers={"torch": lambda: reference.attention(q, k, v)},
            flops=flops,
            tolerance=tolerance,
        )
    if not backward:
        return Workload(
            ours=lambda: ops.attention_qkv(qkv, heads, causal=causal),
            peers={"torch": lambda: sdpa(qkv, heads, causal)},
            flops=flops,
            tolerance=tolerance,
        )
    qkv.requires_grad_()
    dy = torch.randn(batch, tokens, heads * dim, dtype=dtype)
    gradient = partial(torch.autograd.grad, inputs=[qkv], grad_outputs=dy)
    return Workload(
        ours=lambda: gradient(ops.attention_qkv(qkv, heads, causal=causal)),
        peers={"torch": lambda: gradient(sdpa(qkv, heads, causal))},
        flops=flops * 3.5,
        tolerance=tolerance,
    )


def sdpa(qkv: torch.Tensor, heads: int, causal: bool) -> torch.Tensor:
    """As timm and transformers call it: torch's flag for causal attention lets it skip half of the work."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("case", CASES)
def bench_attention(measure, case):
    measure(make(**CASES[case]))
