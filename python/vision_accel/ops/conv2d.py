# SPDX-License-Identifier: Apache-2.0
"""Convolution of channels-last images with bias, activation and residual in its epilogue."""

from typing import Any

import torch
from torch import Tensor

from vision_accel import _C
from vision_accel.ops import _pack_cache, _winograd
from vision_accel.ops._layout import (
    autocast_dtype,
    check_out,
    dense_vector,
    product_options,
    statistics_dtype,
    stream_of,
)
from vision_accel.ops._register import register
from vision_accel.ops.activation import activation as activate

Padding = tuple[int, int, int, int]
_HALVES = (torch.float16, torch.bfloat16)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | Padding = 0,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``residual + act(conv(x, weight) + bias)``, computed in float32 and rounded once.

    On the CPU, a weight that needs no gradient is kept in packed form between calls (see ``_pack_cache``).
    On a GPU, float32 is exact unless ``torch.backends.cuda.matmul.allow_tf32``, or the weight has 16 bits.

    Args:
        x: [B, h, w, C], channels last, float32, float64, float16 or bfloat16.
        weight: [N, C, i, j] in the dtype of x, or in 16 bits beside a float32 x.
        bias: [N] in the dtype of the weight.
        activation: none, gelu, gelu_tanh, quick_gelu or silu.
        residual: [B, v, u, N] in the dtype of the result.
        stride: step of the window, the same in both directions.
        padding: zeros around the image: on each side, or (top, bottom, left, right).
        out_dtype: dtype of the result: that of x, or float32 beside a 16-bit x; by default that of the
            residual, or of x (under ``torch.autocast``, its dtype).
        out: where to write the result, contiguous; may be the residual. Without gradients.

    Returns:
        [B, v, u, N] with ``v = (h + top + bottom - i) // stride + 1``, likewise u.

    Raises:
        ValueError: a shape or device does not match, or the image is smaller than the kernel.
        TypeError: a dtype does not match.

    Source: ``torch.nn.functional.conv2d``; implicit GEMM is Chetlur et al. 2014, arXiv:1410.0759.
    """
    if x.ndim != 4:
        raise ValueError(f"conv2d: x must be [B, h, w, C], got {list(x.shape)}")
    check_float("conv2d", x)
    if weight.ndim != 4 or weight.shape[1] != x.shape[3]:
        raise ValueError(
            f"conv2d: weight must be [N, {x.shape[3]}, i, j] to go with x {list(x.shape)},"
            f" got {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"conv2d: bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    if stride < 1:
        raise ValueError(f"conv2d: stride must be positive, got {stride}")
    pads = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
    if len(pads) != 4 or min(pads) < 0:
        raise ValueError(f"conv2d: padding must be a number or (top, bottom, left, right), got {padding}")
    shape = _out_shape(x, weight, stride, list(pads))
    if min(shape[1:3]) < 1 or 0 in weight.shape[2:]:
        raise ValueError(
            f"conv2d: x {list(x.shape)} with padding {list(pads)} is smaller than the kernel"
            f" {list(weight.shape[2:])}"
        )
    if residual is not None:
        if list(residual.shape) != shape:
            raise ValueError(f"conv2d: residual must be {shape}, got {list(residual.shape)}")
        out_dtype = residual.dtype if out_dtype is None else out_dtype
    if out is not None:
        check_out("conv2d", out, shape, x)
        out_dtype = out.dtype
    weight, bias = beside(x, weight), None if bias is None else beside(x, bias)
    if activation != "none" and torch.is_grad_enabled() and _needs_grad(x, weight, bias):
        y = activate(conv2d(x, weight, bias, stride=stride, padding=padding, out_dtype=out_dtype), activation)
        return y if residual is None else residual + y
    train = torch.is_grad_enabled() and weight.requires_grad
    out_dtype = out_dtype or autocast_dtype(x)
    return _forward(x, weight, bias, residual, activation, stride, list(pads), out_dtype, train, out=out)


def check_float(op: str, x: Tensor) -> None:
    """Refuse an integer image before its dtype is compared with others."""
    if not x.is_floating_point():
        name = str(x.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: x must be float32, float64, float16 or bfloat16, got {name}")


def _needs_grad(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


def beside(x: Tensor, parameter: Tensor) -> Tensor:
    """A 16-bit parameter that is to be trained is converted here; others are when they are packed."""
    wider = x.dtype == torch.float32 and parameter.dtype in _HALVES
    if wider and (parameter.ndim == 1 or (parameter.requires_grad and torch.is_grad_enabled())):
        return parameter.to(x.dtype)
    return parameter


def _out_shape(x: Tensor, weight: Tensor, stride: int, pads: list[int]) -> list[int]:
    (b, h, w, _), (n, _, i, j) = x.shape, weight.shape
    return [b, (h + pads[0] + pads[1] - i) // stride + 1, (w + pads[2] + pads[3] - j) // stride + 1, n]


def dense(x: Tensor) -> Tensor:
    """``x`` if its last axis is contiguous, else a contiguous copy."""
    return x if x.stride(3) == 1 or x.shape[3] <= 1 else x.contiguous()


def allows_tf32(x: Tensor, weight: Tensor) -> bool:
    """Whether a GPU may round float32 operands: torch is set so, or the weight has no more digits."""
    return product_options(x)[0] or weight.dtype in _HALVES


def _matrix(weight: Tensor) -> Tensor:
    """[N, C, i, j] as [N, i * j * C], the order in which patches are gathered."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _check_weight(x: Tensor, weight: Tensor) -> None:
    if weight.dtype != x.dtype and not (x.dtype == torch.float32 and weight.dtype in _HALVES):
        raise TypeError(f"conv2d: weight must be {x.dtype}, got {weight.dtype}".replace("torch.", ""))


def pack(x: Tensor, weight: Tensor, train: bool, form: str = "conv2d", arrange: Any = _matrix) -> Any:
    """The weight as the kernel takes it: a matrix while it is trained, else its packed copy."""
    _check_weight(x, weight)
    if train or weight.is_cuda:
        _pack_cache.forget(weight)  # it is about to change
        return arrange(weight.to(x.dtype)).contiguous(), None

    def make(w: Tensor) -> Tensor:
        return _pack_cache.pack(arrange(w.to(x.dtype)))

    return None, _pack_cache.packed_weight(weight, (form, x.dtype), make)


def pack_points(x: Tensor, weight: Tensor, train: bool, upsample: bool) -> Tensor:
    """The weight as Winograd's algorithm takes it."""
    _check_weight(x, weight)

    def make(w: Tensor) -> Tensor:
        return _winograd.pack(w.to(x.dtype), upsample=upsample)

    if train:
        _pack_cache.forget(weight)
        return make(weight)
    return _pack_cache.packed_weight(weight, ("winograd", upsample), make)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    stride: int,
    pads: list[int],
    out_dtype: torch.dtype,
    train: bool,
    out: Tensor | None = None,
) -> Tensor:
    y = x.new_empty(_out_shape(x, weight, stride, pads), dtype=out_dtype) if out is None else out
    kernel, corner = (weight.shape[2], weight.shape[3]), (pads[0], pads[2])
    bias, residual = dense_vector(bias), None if residual is None else dense(residual)
    if _winograd.suits(x, weight.shape, stride, y.shape[1:3].numel() if train else None):
        points = pack_points(x, weight, train, upsample=False)
        _C.conv2d_winograd(dense(x), points, bias, residual, y, activation, corner, False)
        return y
    matrix, packed = pack(x, weight, train)
    stream, tf32 = stream_of(x), allows_tf32(x, weight)
    _C.conv2d_forward(
        dense(x), matrix, packed, bias, residual, y, activation, kernel, stride, corner, stream, tf32
    )
    return y


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    stride: int,
    pads: list[int],
    out_dtype: torch.dtype,
    train: bool,
) -> Tensor:
    return x.new_empty(_out_shape(x, weight, stride, pads), dtype=out_dtype)


def grad_outputs(
    dy: Tensor, x_shape: list[int], weight_shape: list[int], dtype: torch.dtype, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias; empty where not needed."""
    return (
        dy.new_empty(x_shape if needs[0] else 0, dtype=dtype),
        dy.new_empty(weight_shape if needs[1] else 0, dtype=dtype),
        dy.new_empty(weight_shape[0] if needs[2] else 0, dtype=statistics_dtype(dy)),
    )


def sum_pixels(dy: Tensor, out: Tensor) -> None:
    """The gradient by the bias."""
    rows = dy.flatten(0, 2)
    work = dy.new_empty(_C.linear_workspace(rows, rows, 0, True, False), dtype=out.dtype)
    none = (None,) * 8
    _C.linear_backward(rows, *none, out, None, work, "none", "none", False, False, stream_of(dy))


def backward_weight(
    dy: Tensor, x: Tensor, dweight: Tensor, kernel: tuple[int, int], stride: int, corner: tuple[int, int]
) -> None:
    """The gradient by the weight as a matrix [N, i * j * C], into ``dweight``."""
    scratch = _C.conv2d_workspace(dy, dweight.shape[1])
    work = dy.new_empty(scratch, dtype=statistics_dtype(dy)) if scratch else None
    _C.conv2d_backward_weight(dy, dense(x), dweight, work, kernel, stride, corner, stream_of(dy))


def _grad_run(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    x_shape: list[int],
    weight_shape: list[int],
    stride: int,
    pads: list[int],
    dtype: torch.dtype,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = dx, dweight, dbias = grad_outputs(dy, x_shape, weight_shape, dtype, needs)
    wide, dy = dense(dy), dense(dy).to(dtype)
    i, j = weight_shape[2:]
    winograd = needs[1] and _winograd.suits(dy, weight_shape, stride)
    if needs[2] and not winograd:
        sum_pixels(wide, dbias)
    if needs[0] and weight is not None:
        _backward_input(dy, weight.to(dtype), dx, stride, (pads[0], pads[2]))
    if x is not None and winograd:
        bias = dbias if needs[2] else None
        _winograd.backward_weight(dy, dense(x), dweight, bias, (pads[0], pads[2]), upsample=False)
    elif x is not None and needs[1]:
        last = torch.empty_like(dweight.permute(0, 2, 3, 1), memory_format=torch.contiguous_format)
        backward_weight(dy, x, last.flatten(1), (i, j), stride, (pads[0], pads[2]))
        dweight.copy_(last.permute(0, 3, 1, 2))
    return outputs


def _backward_input(dy: Tensor, weight: Tensor, dx: Tensor, stride: int, corner: tuple[int, int]) -> None:
    """The gradient by x: every stride-th pixel of it is a convolution of dy with every stride-th tap."""
    turned = weight.transpose(0, 1)  # [C, N, i, j]
    pads = (2 - corner[0], 2 - corner[1])
    if min(pads) >= 0 and _winograd.suits(dy, turned.shape, stride, dx.shape[1:3].numel()):
        points = _winograd.pack(turned, mirrored=True)
        _C.conv2d_winograd(dy, points, None, None, dx, "none", pads, False)
        return
    stream, tf32 = stream_of(dy), allows_tf32(dy, weight)
    for row in range(stride):
        for col in range(stride):
            phase = dx[:, row::stride, col::stride]
            # The first tap that meets the phase, and how far from it in dy.
            (down, i), (right, j) = (divmod(p + c, stride) for p, c in zip((row, col), corner, strict=True))
            taps = turned[:, :, i::stride, j::stride].flip(2, 3)
            kernel = tuple(taps.shape[2:])
            if 0 in kernel:
                phase.zero_()
                continue
            pads = (kernel[0] - 1 - down, kernel[1] - 1 - right)
            matrix = _matrix(taps).contiguous()
            _C.conv2d_forward(dy, matrix, None, None, None, phase, "none", kernel, 1, pads, stream, tf32)


def _grad_fake(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    x_shape: list[int],
    weight_shape: list[int],
    stride: int,
    pads: list[int],
    dtype: torch.dtype,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return grad_outputs(dy, x_shape, weight_shape, dtype, needs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _, _, stride, pads, _, _ = inputs
    need_x, need_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if need_weight else None, weight if need_x else None)
    ctx.x_shape, ctx.weight_shape, ctx.dtype = list(x.shape), list(weight.shape), x.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.stride, ctx.pads = stride, pads


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    found: tuple[Tensor | None, ...] = (None,) * 3
    if any(needs):
        grads = _grad(
            dy, *ctx.saved_tensors, ctx.x_shape, ctx.weight_shape, ctx.stride, ctx.pads, ctx.dtype, needs
        )
        found = tuple(g if need else None for g, need in zip(grads, needs, strict=True))
    dx, dweight, dbias = found
    dbias = None if dbias is None else dbias.to(ctx.bias_dtype)
    return (dx, dweight, dbias, dy if ctx.needs_input_grad[3] else None, *(None,) * 5)


_forward = register(
    "conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str activation, int stride, int[] pads,"
    " ScalarType out_dtype, bool train) -> Tensor",
    _run,
    _fake,
    _backward,
    _setup_context,
    autocast=(0, 1, 2),
)
_grad = register(
    "conv2d_backward",
    "(Tensor dy, Tensor? x, Tensor? weight, SymInt[] x_shape, SymInt[] weight_shape, int stride, int[] pads,"
    " ScalarType dtype, bool[] needs) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    _grad_run,
    _grad_fake,
)
