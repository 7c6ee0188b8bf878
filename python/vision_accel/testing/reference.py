# SPDX-License-Identifier: Apache-2.0
"""What each op means, in plain torch. One function per op, same arguments, any floating dtype."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    s = x if residual is None else x + residual
    y = torch.nn.functional.layer_norm(s, s.shape[-1:], weight, bias, eps)
    return y if residual is None else (y, s)


def activation(x: Tensor, kind: str) -> Tensor:
    f = torch.nn.functional
    functions: dict[str, Callable[[], Tensor]] = {
        "none": lambda: x,
        "gelu": lambda: f.gelu(x),
        "gelu_tanh": lambda: f.gelu(x, approximate="tanh"),
        "quick_gelu": lambda: x * torch.sigmoid(1.702 * x),
        "silu": lambda: f.silu(x),
    }
    return functions[kind]()


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    activation: str = "gelu",
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    hidden = linear(x, weight1, bias1, activation)
    return linear(hidden, weight2, bias2, "none", residual, scale)


_activate = activation  # linear has an argument of that name


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    if rows is not None:
        weight = weight[slice(*rows)]
        bias, scale = (None if v is None else v[slice(*rows)] for v in (bias, scale))
    y = torch.nn.functional.linear(x, weight.flatten(1), bias)
    y = globals()["activation"](y, activation)
    if scale is not None:
        y = y * scale
    return y if residual is None else residual + y


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    key_padding: Tensor | None = None,
) -> Tensor:
    mask = None if key_padding is None else ~key_padding[:, None, None, :]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if causal:
        n, m = q.shape[2], k.shape[2]
        lower = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        mask = lower if mask is None else mask & lower
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return y.transpose(1, 2).flatten(2)


def attention_qkv(qkv: Tensor, num_heads: int, **options: object) -> Tensor:
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(2)
    return attention(q, k, v, **options)  # type: ignore[arg-type]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | tuple[int, int, int, int] = 0,
) -> Tensor:
    top, bottom, left, right = (padding,) * 4 if isinstance(padding, int) else padding
    images = torch.nn.functional.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom))
    y = torch.nn.functional.conv2d(images, weight, bias, stride).permute(0, 2, 3, 1)
    y = _activate(y, activation)
    return y if residual is None else residual + y


def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    larger = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return conv2d(larger, weight, bias, padding=1)


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6, activation: str = "none"
) -> Tensor:
    y = torch.nn.functional.group_norm(x.movedim(-1, 1), groups, weight, bias, eps).movedim(1, -1)
    return _activate(y, activation)


def patchify(x: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    p = torch.nn.functional.unfold(x, patch_size, stride=patch_size)
    return p.transpose(1, 2)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    *,
    ignore_index: int = -100,
) -> Tensor:
    rows = target.flatten() if target.ndim < logits.ndim else target.flatten(0, -2)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2),
        rows,
        label_smoothing=label_smoothing,
        reduction=reduction,
        ignore_index=ignore_index,
    )
    return loss.unflatten(0, logits.shape[:-1]) if reduction == "none" else loss


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    wide = torch.promote_types(image.dtype, torch.float32)
    logits = scale.to(wide) * image.to(wide) @ text.to(wide).T
    if bias is not None:
        signs = 2 * torch.eye(len(image), dtype=wide) - 1
        return -torch.nn.functional.logsigmoid(signs * (logits + bias.to(wide))).sum() / len(image)
    labels = torch.arange(len(image))
    loss = torch.nn.functional.cross_entropy
    return (loss(logits, labels) + loss(logits.T, labels)) / 2


def grad_norm(grads: list[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm(grads)


def adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    grad_scale: float = 1.0,
) -> None:
    b1, b2 = betas
    with torch.no_grad():
        for p, g, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
            g = g * grad_scale
            p.mul_(1 - lr * weight_decay)
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            denom = (v.sqrt() / (1 - b2**step) ** 0.5).add_(eps)
            p.addcdiv_(m, denom, value=-lr / (1 - b1**step))


def block_float(x: Tensor) -> Tensor:
    """What unpacking gives of packed rows [R, W, C]."""
    rows, width, channels = x.shape
    blocks = -(-width // 16)
    padded = torch.nn.functional.pad(x.double(), (0, 0, 0, blocks * 16 - width))
    values = padded.view(rows, blocks, 16, channels)
    largest = values.abs().amax(2, keepdim=True)
    step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 19)
    y = (values / step).round().clamp(-(2**19 - 1), 2**19 - 1) * step
    y = y.masked_fill(largest < 2.0**-107, 0).masked_fill(~largest.isfinite(), torch.nan)
    return y.view(rows, blocks * 16, channels)[:, :width].to(x.dtype)


def resample(
    image: np.ndarray[Any, Any],
    size: tuple[int, int],
    *,
    interpolation: str = "bicubic",
    box: tuple[float, float, float, float] | None = None,
    crop: tuple[int, int, int, int] | None = None,
    flip: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] = (1.0,),
) -> np.ndarray[Any, Any]:
    h, w, channels = image.shape
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[channels]  # RGBA would be multiplied by alpha
    pil = Image.frombytes(mode, (w, h), np.ascontiguousarray(image).tobytes())
    pil = pil.resize((size[1], size[0]), Image.Resampling[interpolation.upper()], box)
    y = np.asarray(pil).reshape(*size, channels)
    if crop is not None:
        y = y[crop[0] : crop[0] + crop[2], crop[1] : crop[1] + crop[3]]
    if flip:
        y = y[:, ::-1]
    if mean is None:
        return y
    scaled = (y.astype(np.float64) * (1 / 255)).astype(np.float32)
    return ((scaled - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)
