# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses of CLIP and SigLIP in blocks of logits: the matrix of all of them is never stored."""

from typing import Any

import torch
from torch import Tensor

from vision_accel import _C
from vision_accel.ops._layout import dense_rows, statistics_dtype, stream_of
from vision_accel.ops._register import register


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Loss of images and texts that belong together pairwise.

    Without a bias, the mean of the two cross-entropies of ``scale * image @ text.T`` along rows and columns
    (CLIP); with one, the mean over images of the summed binary cross-entropies of all pairs (SigLIP).
    Computed in float32 (float64 for float64 inputs) some hundred rows of logits at a time, once
    more in backward; the result is the same, bit for bit, for any number of threads.

    Args:
        image: [B, E], usually normalised; float32, float64, float16 or bfloat16.
        text: [B, E], as image.
        scale: the factor of the logits (not its logarithm); a scalar.
        bias: added to the logits, a scalar; None for the softmax loss.

    Returns:
        a scalar in float32 (float64).

    Raises:
        ValueError: a shape does not match, or there are no pairs.
        TypeError: a dtype is not supported.

    Sources: Radford et al. 2021, arXiv:2103.00020, figure 3; Zhai et al. 2023, arXiv:2303.15343, algorithm 1.
    """
    check_pairs(image, text)
    if bias is not None:
        return sigmoid_rows(image, text, scale, bias, 0).mean()
    rows, own, top, columns = softmax_parts(image, text, scale, 0)
    return (rows + ((top - own) + columns)).mean() / 2


def check_pairs(image: Tensor, text: Tensor) -> None:
    """Raise ValueError unless these are pairs of embeddings."""
    if image.ndim != 2 or image.shape != text.shape or not len(image):
        raise ValueError(
            f"contrastive_loss: images and texts must be [B, E] of one shape, B > 0, got {list(image.shape)}"
            f" and {list(text.shape)}"
        )


def softmax_parts(
    image: Tensor, text: Tensor, scale: Tensor, first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the softmax loss is made of, when these may be the images of one process and the texts of all.

    Args:
        image: [M, E].
        text: [N, E]; that of image i is text first + i.
        scale: of the logits, a scalar.
        first: see text.

    Returns:
        rows [M], the cross-entropy of each image; own [M], the logit of each image with its text; top [N] and
        columns [N]: ``top + columns`` is the logarithm of the sum of the exponentials of a text's logits.
        No gradient flows into top: it is a reference that columns is taken from, and cancels in that sum.
    """
    parts: tuple[Tensor, Tensor, Tensor, Tensor] = _forward(*_same_dtype(image, text), scale, None, first)
    return parts


def sigmoid_rows(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, first: int) -> Tensor:
    """The sigmoid losses [M] of images [M, E] with texts [N, E], each summed over the texts.

    The text of image i is text first + i; with a negative ``first`` none belongs to any of these images.
    """
    rows: Tensor = _forward(*_same_dtype(image, text), scale, bias, first)[0]
    return rows


def sigmoid_rows_backward(
    drows: Tensor, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``sigmoid_rows`` for image, text, scale and bias, in the dtype of statistics."""
    none = drows.new_empty(0)
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _grad(
        drows, none, none, image, text, scale, bias, drows, none, none, none, first
    )
    return found


def _same_dtype(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(image.dtype, text.dtype)
    if dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise TypeError(
            f"contrastive_loss: image and text must be float32, float64, float16 or bfloat16, got {dtype}"
        )
    return image.to(dtype), text.to(dtype)


def _outputs(
    image: Tensor, text: Tensor, _scale: Tensor, bias: Tensor | None, _first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, own, top, columns; the last three are empty for the sigmoid loss."""
    softmax = bias is None
    rows = torch.empty(image.shape[:1], dtype=statistics_dtype(image), device=image.device)
    top = rows.new_empty(text.shape[0] if softmax else 0)
    return rows, rows.new_empty(image.shape[0] if softmax else 0), top, torch.empty_like(top)


def _run(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, own, top, columns = outputs = _outputs(image, text, scale, bias, first)
    softmax = bias is None
    _C.contrastive_loss_forward(
        *_wide(image, text, scale, bias),
        rows,
        own if softmax else None,
        top if softmax else None,
        columns if softmax else None,
        _workspace(image, text),
        first,
        stream_of(image),
    )
    return outputs


def _wide(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """These in the dtype of statistics, with contiguous rows."""
    dtype = statistics_dtype(image)
    wide_bias = None if bias is None else bias.to(dtype)
    return dense_rows(image.to(dtype)), dense_rows(text.to(dtype)), scale.to(dtype), wide_bias


def _workspace(image: Tensor, text: Tensor) -> Tensor:
    numel = _C.contrastive_loss_workspace(image.shape[0], text.shape[0])
    return torch.empty(numel, dtype=statistics_dtype(image), device=image.device)


def _grad_outputs(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of these, in the dtype of statistics; that of an absent bias is empty."""
    shapes = (image.shape, text.shape, scale.shape, (0,) if bias is None else bias.shape)
    dimage, dtext, dscale, dbias = (
        torch.empty(shape, dtype=statistics_dtype(image), device=image.device) for shape in shapes
    )
    return dimage, dtext, dscale, dbias


def _grad_run(
    drows: Tensor,
    down: Tensor,
    dcolumns: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    own: Tensor,
    top: Tensor,
    columns: Tensor,
    first: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dimage, dtext, dscale, dbias = outputs = _grad_outputs(image, text, scale, bias)
    softmax = bias is None
    _C.contrastive_loss_backward(
        drows.contiguous(),
        down.contiguous() if softmax else None,
        dcolumns.contiguous() if softmax else None,
        *_wide(image, text, scale, bias),
        rows,
        own if softmax else None,
        top if softmax else None,
        columns if softmax else None,
        dimage,
        dtext,
        dscale,
        None if softmax else dbias,
        _workspace(image, text),
        first,
        stream_of(image),
    )
    return outputs


def _grad_fake(
    _drows: Tensor,
    _down: Tensor,
    _dcolumns: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _grad_outputs(image, text, scale, bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image, text, scale, bias, ctx.first = inputs
    ctx.save_for_backward(image, text, scale, bias, *output)
    ctx.mark_non_differentiable(output[2])


def _backward(
    ctx: Any, drows: Tensor, down: Tensor, _dtop: Tensor, dcolumns: Tensor
) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors[:4]
    found = _grad(drows, down, dcolumns, *ctx.saved_tensors, ctx.first)
    return (*(None if x is None else g.to(x.dtype) for g, x in zip(found, inputs, strict=True)), None)


_forward = register(
    "contrastive_loss",
    "(Tensor image, Tensor text, Tensor scale, Tensor? bias, SymInt first)"
    " -> (Tensor rows, Tensor own, Tensor top, Tensor columns)",
    _run,
    _outputs,
    _backward,
    _setup_context,
)
_grad = register(
    "contrastive_loss_backward",
    "(Tensor drows, Tensor down, Tensor dcolumns, Tensor image, Tensor text, Tensor scale, Tensor? bias,"
    " Tensor rows, Tensor own, Tensor top, Tensor columns, SymInt first)"
    " -> (Tensor dimage, Tensor dtext, Tensor dscale, Tensor dbias)",
    _grad_run,
    _grad_fake,
)
