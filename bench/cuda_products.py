# SPDX-License-Identifier: Apache-2.0
"""Workloads of ``bench.cuda`` for CLIP and the autoencoder: their ops, one tower, one decode."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

import vision_accel as va
from bench import peers
from bench.common import Call, Workload
from vision_accel import ops
from vision_accel.infer import _graph
from vision_accel.testing import reference

DEVICE = "cuda"
BF16 = torch.bfloat16


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The best that torch.compile offers without changing the call: autotuned kernels."""
    torch.compiler.reset()
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def randn(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    """Random numbers on the GPU."""
    return torch.randn(shape, device=DEVICE).to(dtype)


def _forward_or_gradients(
    fn: Callable[..., Any], leaves: list[torch.Tensor], dy: torch.Tensor | None
) -> Call:
    if dy is None:
        return torch.inference_mode()(lambda: fn(*leaves))
    y = fn(*(t.requires_grad_() for t in leaves))
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def conv2d(size: int, channels: int, out: int, upsample: bool = False, backward: bool = False) -> Workload:
    """3 x 3, stride 1, one image; with ``upsample`` from half the size."""
    before = size // 2 if upsample else size
    x, bias = randn(1, before, before, channels), randn(out)
    weight = randn(out, channels, 3, 3) / (9 * channels) ** 0.5
    last = weight.contiguous(memory_format=torch.channels_last)

    def ours(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ops.upsample_conv2d(x, weight, bias) if upsample else ops.conv2d(x, weight, bias, padding=1)

    def theirs(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        image = x.permute(0, 3, 1, 2)
        if upsample:
            image = functional.interpolate(image, scale_factor=2.0, mode="nearest")
        return functional.conv2d(image, weight, bias, padding=1).permute(0, 2, 3, 1)

    dy = randn(1, size, size, out) if backward else None
    flops = 2.0 * size * size * 9 * channels * out
    return Workload(
        _forward_or_gradients(ours, [x, weight, bias], dy),
        {"torch channels_last": _forward_or_gradients(theirs, [x, last, bias], dy)},
        flops=flops * (2 if backward else 1),
        tolerance=3e-2,
    )


def group_norm(size: int, channels: int, backward: bool = False) -> Workload:
    """32 groups and SiLU, one image."""
    leaves = [randn(1, size, size, channels), randn(channels), randn(channels)]
    dy = randn(1, size, size, channels) if backward else None

    def ours(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ops.group_norm(x, 32, weight, bias, 1e-6, "silu")

    def theirs(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return reference.group_norm(x, 32, weight, bias, 1e-6, "silu")

    return Workload(
        _forward_or_gradients(ours, leaves, dy),
        {"torch": _forward_or_gradients(theirs, leaves, dy)},
        lambda: ({"torch.compile": _forward_or_gradients(compiled(theirs), leaves, dy)}, {}),
        bytes=2.0 * leaves[0].numel() * (5 if backward else 3),
        tolerance=3e-2,
    )


def contrastive_loss(pairs: int, bias: bool) -> Workload:
    """Embeddings of 512, forward and backward."""
    x, y = (functional.normalize(randn(pairs, 512, dtype=torch.float32), dim=-1) for _ in range(2))
    scalars = [torch.tensor(v, device=DEVICE) for v in ((20.0, -10.0) if bias else (20.0,))]
    leaves = [t.requires_grad_() for t in (x, y, *scalars)]

    def call(fn: Callable[..., Any]) -> Call:
        def run() -> Any:
            loss = fn(*leaves)
            return loss, torch.autograd.grad(loss, leaves)

        return run

    return Workload(
        call(ops.contrastive_loss),
        {"torch": call(reference.contrastive_loss)},
        flops=6.0 * pairs * pairs * 512,  # ours makes the logits twice, 8
        tolerance=1e-3,
    )


def clip_images(batch: int) -> Workload:
    """The image tower of CLIP ViT-L/14."""
    plain = peers.PlainClipVision(1024, 24, 16, 14, 768)
    model = va.create_model("ViT-L-14")
    model.load_state_dict(plain.state_dict(), strict=False)
    plain, model = plain.to(DEVICE, BF16).eval(), model.to(DEVICE, BF16).eval()
    x = randn(batch, 3, 224, 224)

    def ours() -> torch.Tensor:
        return _graph.run(model, "images", lambda x: model.encode_image(x, normalize=False), x)

    torch.compiler.reset()
    return Workload(
        torch.inference_mode()(ours),
        {"torch": torch.inference_mode()(lambda: plain(x))},
        lambda: ({"torch.compile max-autotune": _best(plain, x)}, {}),
        flops=162.0e9 * batch,
        images=batch,
        tolerance=5e-2,
    )


def _best(module: torch.nn.Module, x: torch.Tensor) -> Call:
    fn = torch.compile(module, mode="max-autotune")
    return torch.inference_mode()(lambda: fn(x))


def decode(size: int) -> Workload:
    """Stable Diffusion's decoder, one image of ``size`` pixels."""
    plain = peers.PlainDecoder()
    model = va.create_model("autoencoder_kl_sd")
    model.decoder.load_state_dict(plain.state_dict())
    model.post_quant_conv = None
    plain = plain.to(DEVICE, BF16).to(memory_format=torch.channels_last).eval()
    model = model.to(DEVICE, BF16).to(memory_format=torch.channels_last).eval()  # weights as the kernels read
    z = randn(1, 4, size // 8, size // 8)
    last = z.contiguous(memory_format=torch.channels_last)
    torch.compiler.reset()
    return Workload(
        torch.inference_mode()(lambda: model.decode(z, return_dict=False)[0]),
        {"torch channels_last": torch.inference_mode()(lambda: plain(last))},
        lambda: ({"torch.compile max-autotune": _best(plain, last)}, {}),
        flops=10.47e12 * (size / 1024) ** 2,  # of 1024 pixels; attention grows faster, by a few percent
        images=1,
        tolerance=8e-2,
    )


def cases() -> dict[str, Callable[[], Workload]]:
    """What the issue of speed is about in CLIP and in the autoencoder."""
    found: dict[str, Callable[[], Workload]] = {}
    for backward in (False, True):
        end = ", backward" * backward
        found[f"conv2d 512 -> 512 at 128 px{end}"] = lambda b=backward: conv2d(128, 512, 512, backward=b)  # type: ignore[misc]
        found[f"conv2d 256 -> 256 at 512 px{end}"] = lambda b=backward: conv2d(512, 256, 256, backward=b)  # type: ignore[misc]
        found[f"conv2d 128 -> 128 at 1024 px{end}"] = lambda b=backward: conv2d(1024, 128, 128, backward=b)  # type: ignore[misc]
        found[f"upsample + conv2d 256 at 1024 px{end}"] = lambda b=backward: conv2d(1024, 256, 256, True, b)  # type: ignore[misc]
        found[f"group_norm + silu 128 at 1024 px{end}"] = lambda b=backward: group_norm(1024, 128, b)  # type: ignore[misc]
        found[f"group_norm + silu 512 at 128 px{end}"] = lambda b=backward: group_norm(128, 512, b)  # type: ignore[misc]
    for bias in (False, True):
        name = "sigmoid" if bias else "softmax"
        found[f"{name} loss, 8192 pairs"] = lambda b=bias: contrastive_loss(8192, b)  # type: ignore[misc]
    for batch in (1, 256):
        found[f"CLIP L/14 images, batch {batch}"] = lambda b=batch: clip_images(b)  # type: ignore[misc]
    for size in (512, 1024):
        found[f"SD decode, {size} px"] = lambda s=size: decode(s)  # type: ignore[misc]
    return found
