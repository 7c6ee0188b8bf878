# SPDX-License-Identifier: Apache-2.0
"""What holds for every op: strange tensors, transforms of torch, arguments of the wrong kind."""

import pytest
import torch

from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate


@pytest.mark.parametrize("vector", [lambda n: torch.randn(2 * n)[::2], lambda n: torch.randn(1).expand(n)])
def test_parameters_with_strides(vector):
    x, image = torch.randn(5, 16), torch.randn(1, 4, 4, 16)
    weight, kernel = torch.randn(16, 16), torch.randn(16, 16, 3, 3)
    calls = {
        "layer_norm": (x, vector(16), vector(16)),
        "linear": (x, weight, vector(16), "gelu", x, vector(16)),
        "mlp": (x, weight, vector(16), weight, vector(16), "gelu", x, vector(16)),
        "group_norm": (image, 4, vector(16), vector(16)),
        "conv2d": (image, kernel, vector(16)),
        "upsample_conv2d": (image, kernel, vector(16)),
    }
    for name, args in calls.items():
        assert_accurate(getattr(ops, name), getattr(reference, name), args)


def test_a_sign_that_is_not_applied_yet():
    x = torch.randn(3, 8, dtype=torch.complex64).conj().imag
    weight = torch._neg_view(torch.randn(4, 8)).requires_grad_()
    assert x.is_neg()
    y = ops.linear(x, weight)
    assert torch.allclose(y, x @ weight.T, atol=1e-5)
    (grad,) = torch.autograd.grad(y.square().sum(), weight)
    assert torch.allclose(grad, torch.autograd.grad((x @ weight.T).square().sum(), weight)[0], atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forward_mode_is_refused():
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    with pytest.raises(NotImplementedError, match=r"linear: forward-mode differentiation"):
        torch.func.jvp(lambda v: ops.linear(v, weight), (x,), (x,))
    value, tangent = torch.func.jvp(lambda v: v * ops.linear(x, weight).sum(), (x,), (x,))
    assert torch.equal(value, tangent)


def test_second_derivatives_are_refused():
    x = torch.randn(3, 8, requires_grad=True)
    for observed in (False, True):
        with torch.autocast("cpu", enabled=observed):  # then the op is called through torch's dispatcher
            (grad,) = torch.autograd.grad(ops.activation(x, "gelu").sum(), x, create_graph=True)
            penalty = grad.square().sum() + x.sum()
            with pytest.raises(NotImplementedError, match="activation: second derivatives are not supported"):
                penalty.backward()


def test_transforms():
    x, weight = torch.randn(3, 5, 8), torch.randn(4, 8)
    mapped = torch.func.vmap(lambda v: ops.linear(v, weight))(x)
    assert torch.equal(mapped, ops.linear(x, weight))


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated, and shapes are constants in it
def test_traced():
    weight = torch.randn(4, 8)
    traced = torch.jit.trace(lambda v: ops.activation(ops.linear(v, weight), "gelu"), torch.randn(3, 8))
    x = torch.randn(5, 8)
    assert torch.equal(traced(x), ops.linear(x, weight, None, "gelu"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: ops.layer_norm(x, w, w, "small"), "'eps' but instead found type 'str'"),
        (lambda x, w: ops.layer_norm(x, [1.0] * 8, w), "'weight' but instead found type 'list'"),
        (lambda x, w: ops.activation(x, None), "'kind' but instead found type 'NoneType'"),
    ],
)
def test_arguments_of_the_wrong_kind(call, message):
    with pytest.raises(TypeError, match=message) as error:
        call(torch.randn(3, 8), torch.randn(8))
    assert "\n" not in str(error.value)
