# SPDX-License-Identifier: Apache-2.0
"""ViT-B/16 timed against plain PyTorch with the same weights, call by call in turn."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import vision_accel as va

NAME = "vit_base_patch16_224"


def plain_vit(weights: Mapping[str, Tensor], x: Tensor, depth: int = 12, heads: int = 12) -> Tensor:
    """A ViT in torch's own functions, as timm computes it: images [B, 3, h, w] -> logits [B, K]."""
    w = weights

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    patch = w["patch_embed.proj.weight"]
    x = F.conv2d(x, patch, w["patch_embed.proj.bias"], stride=patch.shape[-2:]).flatten(2).mT  # [B, N, C]
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w["pos_embed"]
    for i in range(depth):
        block = f"blocks.{i}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).unflatten(-1, (3, heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, N, D]
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(f"{block}.attn.proj", y)
        y = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + linear(f"{block}.mlp.fc2", y)
    return linear("head", norm("norm", x)[:, 0])


def compare(seconds: float = 8.0) -> list[dict[str, float]]:
    """Time both at batch 1 and 8, in turn; verifies first that they agree.

    Returns:
        One record per batch size: ``batch``, the time of a call in ms (``ours_min``, ``ours_median``,
        ``torch_min``, ``torch_median``), the largest difference of the logits relative to the largest
        logit, and how many times faster ours is (``ratio_min``, ``ratio_median``).
    """
    torch.manual_seed(0)
    model = va.create_model(NAME).eval()
    weights = {name: p.detach() for name, p in model.state_dict().items()}
    records = []
    with torch.inference_mode():
        for batch in (1, 8):
            x = torch.randn(batch, 3, 224, 224)
            calls: dict[str, Callable[[], Tensor]] = {
                "ours": partial(model, x),
                "torch": partial(plain_vit, weights, x),
            }
            a, b = calls["ours"](), calls["torch"]()
            record = {"batch": batch, "difference": ((a - b).abs().max() / b.abs().max()).item()}
            for name, times in _interleave(calls, seconds).items():
                record[f"{name}_min"] = 1e3 * min(times)
                record[f"{name}_median"] = 1e3 * statistics.median(times)
            for kind in ("min", "median"):
                record[f"ratio_{kind}"] = record[f"torch_{kind}"] / record[f"ours_{kind}"]
            records.append(record)
    return records


def _interleave(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, taken in turn in changing order so that a drifting machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[order[0]]) < 3:
        for name in order:
            begin = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - begin)
        order.reverse()
    return times


def table(records: list[dict[str, float]]) -> str:
    """The records as a Markdown table."""
    lines = [
        "| batch | vision_accel min / median ms | PyTorch min / median ms | PyTorch / vision_accel |",
        "| ----: | ---------------------------: | ----------------------: | ---------------------: |",
    ]
    for r in records:
        ours = f"{r['ours_min']:.1f} / {r['ours_median']:.1f}"
        torch_ = f"{r['torch_min']:.1f} / {r['torch_median']:.1f}"
        ratio = f"{r['ratio_min']:.2f} / {r['ratio_median']:.2f}"
        lines.append(f"| {r['batch']:5} | {ours:>28} | {torch_:>23} | {ratio:>22} |")
    return "\n".join(lines)
