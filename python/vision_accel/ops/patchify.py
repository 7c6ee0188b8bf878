# SPDX-License-Identifier: Apache-2.0
"""Images cut into patches: what a convolution with stride = kernel size sees."""

from typing import Any

from torch import Tensor

from vision_accel import _C
from vision_accel.ops._layout import stream_of
from vision_accel.ops._register import register


def patchify(x: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Cut images into flattened patches, row by row.

    The elements of a patch are in the order (C, ph, pw) of a flattened convolution weight, so a patch
    embedding is ``linear(patchify(x, p), weight.flatten(1))``.

    Args:
        x: [B, C, h, w], float32, float64, float16 or bfloat16, any strides (channels_last too).
        patch_size: side of a patch in pixels, or (height, width); h and w must be multiples of it.

    Returns:
        [B, (h / ph) * (w / pw), C * ph * pw].

    Raises:
        ValueError: x has not 4 dimensions, or h or w cannot be divided.
        TypeError: x is not a floating tensor.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929; ``torch.nn.functional.unfold``.
    """
    ph, pw = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    y: Tensor = _forward(x, ph, pw)
    return y


def _output(x: Tensor, ph: int, pw: int) -> Tensor:
    if x.ndim != 4:
        raise ValueError(f"patchify: x must be [B, C, h, w], got {list(x.shape)}")
    B, C, h, w = x.shape
    if ph < 1 or pw < 1:
        raise ValueError(f"patchify: patch_size must be positive, got {ph} x {pw}")
    if h % ph or w % pw:
        raise ValueError(
            f"patchify: height and width must be divisible by the patch size {ph} x {pw}, got {h} x {w}"
        )
    return x.new_empty((B, (h // ph) * (w // pw), C * ph * pw))


def _run(x: Tensor, ph: int, pw: int) -> Tensor:
    y = _output(x, ph, pw)
    _C.patchify(x, y, ph, pw, stream_of(x))
    return y


def _grad_run(dy: Tensor, shape: list[int], ph: int, pw: int) -> Tensor:
    dx = dy.new_empty(shape)
    _C.unpatchify(dy.contiguous(), dx, ph, pw, stream_of(dy))
    return dx


def _grad_fake(dy: Tensor, shape: list[int], _ph: int, _pw: int) -> Tensor:
    return dy.new_empty(shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.ph, ctx.pw = inputs
    ctx.shape = x.shape


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    return _grad(dy, ctx.shape, ctx.ph, ctx.pw), None, None


_forward = register(
    "patchify", "(Tensor x, SymInt ph, SymInt pw) -> Tensor", _run, _output, _backward, _setup_context
)
_grad = register(
    "patchify_backward",
    "(Tensor dy, SymInt[] shape, SymInt ph, SymInt pw) -> Tensor",
    _grad_run,
    _grad_fake,
)
