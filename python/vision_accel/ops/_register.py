# SPDX-License-Identifier: Apache-2.0
"""The one place that touches torch.library: how an op becomes known to torch.

An op is registered with ``Library.define`` and ``impl`` (``custom_op`` costs several times more per call),
so that autograd, ``torch.compile``, ``torch.export``, tensor subclasses, the profiler and CUDA graphs see
it. On plain tensors with nothing of that in play, the dispatcher is skipped: it costs more than a small op.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_LIB = torch.library.Library("vision_accel", "DEF")
_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
_PLAIN = frozenset({Tensor, torch.nn.Parameter})

Op = Callable[..., Any]


def register(
    name: str,
    schema: str,
    impl: Op,
    fake: Op,
    backward: Op | None = None,
    setup_context: Callable[..., None] | None = None,
    autocast: tuple[int, ...] = (),
) -> Op:
    """Register ``vision_accel::<name>`` and return the function that calls it (positional arguments only).

    Where ``impl`` has an argument ``out``, so has it: the result is written there, without gradients.

    Args:
        name: the op's name.
        schema: its arguments and results in torch's schema language, without the name.
        impl: the implementation for CPU and CUDA tensors.
        fake: computes empty outputs of the right shape, dtype and device from fake inputs.
        backward: ``backward(ctx, *grads)``, gradients in the order of the inputs; None: not differentiable,
            and a gradient that is asked for is an error.
        setup_context: ``setup_context(ctx, inputs, output)``, saves what backward needs.
        autocast: which arguments ``torch.autocast`` converts to its dtype.
    """
    qualified = f"vision_accel::{name}"
    _LIB.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    for key in ("CPU", "CUDA"):
        _LIB.impl(name, impl, key)
    torch.library.register_fake(qualified, fake, lib=_LIB)
    backward = backward or _refuse_backward(name)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_LIB)
    dispatched = getattr(torch.ops.vision_accel, name).default
    if autocast:
        for device, key in _AUTOCAST.items():
            _LIB.impl(name, _autocast_kernel(dispatched, device, autocast), key)
    differentiable = _function(name, impl, backward, setup_context)

    def call(*args: Any, out: Tensor | None = None) -> Any:
        if out is not None:
            return write(out, args)
        if torch.compiler.is_compiling():
            return dispatched(*args)
        needs_grad = False
        for a in args:
            if isinstance(a, Tensor):
                if type(a) not in _PLAIN or a.is_meta or a.is_neg():  # is_neg: a sign not yet applied
                    return dispatched(*args)
                needs_grad = needs_grad or a.requires_grad
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, args)
        if _is_observed():
            return dispatched(*args)
        try:
            return differentiable(*args) if needs_grad and torch.is_grad_enabled() else impl(*args)
        except (AttributeError, TypeError) as e:
            if isinstance(e, TypeError) and "incompatible function arguments" not in str(e):
                raise
        try:
            return dispatched(*args)
        except RuntimeError as e:  # torch names the argument that is of the wrong type
            raise TypeError(str(e).partition("\n")[0]) from None

    def write(out: Tensor, args: tuple[Any, ...]) -> Tensor:
        tensors = [out, *(a for a in args if isinstance(a, Tensor))]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            raise NotImplementedError(f"{name}: its gradient with out= is not supported")
        if torch.compiler.is_compiling() or _is_observed() or any(type(t) not in _PLAIN for t in tensors):
            return out.copy_(dispatched(*args))
        impl(*args, out=out)
        torch.autograd.graph.increment_version(out)
        return out

    return call


def _autocast_kernel(op: Op, device: str, positions: tuple[int, ...]) -> Op:
    """Converts what torch's own autocast would: floating tensors of this device, except float64."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST[device]))

    def cast(x: Any, dtype: torch.dtype) -> Any:
        if (
            isinstance(x, Tensor)
            and x.is_floating_point()
            and x.dtype != torch.float64
            and x.device.type == device
        ):
            return x.to(dtype)
        return x

    def kernel(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*(cast(a, dtype) if i in positions else a for i, a in enumerate(args)))

    return kernel


def _is_observed() -> bool:
    """Whether something wants to see ops: modes, transforms, autocast, profilers, tracers."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_any_autocast_enabled()
        or torch._C._autograd._profiler_enabled()
        or torch._C._get_tracing_state() is not None
    )


def _refuse_backward(name: str) -> Op:
    def backward(_ctx: Any, *_grads: Any) -> Any:
        reason = "second derivatives are" if name.endswith("_backward") else "its gradient is"
        raise NotImplementedError(f"{name.removesuffix('_backward')}: {reason} not supported")

    return backward


def _refuse_tangents(name: str, args: tuple[Any, ...]) -> None:
    """torch.library would drop them in silence."""
    if any(isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in args):
        raise NotImplementedError(f"{name}: forward-mode differentiation (jvp) is not supported")


def _function(name: str, impl: Op, backward: Op, setup_context: Callable[..., None] | None) -> Op:
    def forward(ctx: Any, *args: Any) -> Any:
        output = impl(*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    function = type(
        name,
        (torch.autograd.Function,),
        {
            "forward": staticmethod(forward),
            "backward": staticmethod(backward),
        },
    )
    # Function.apply without its Python part, which is for the transforms that _is_observed has ruled out.
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]
