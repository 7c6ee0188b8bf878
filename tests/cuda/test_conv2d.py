# SPDX-License-Identifier: Apache-2.0
"""conv2d, upsample_conv2d and group_norm on a GPU, and the autoencoder that is made of them."""

import copy

import pytest
import torch

import vision_accel as va
from tests.ops.test_conv2d import DTYPES, GEOMETRIES, case, check
from tests.ops.test_group_norm import case as norm_case
from vision_accel import ops
from vision_accel.testing import reference
from vision_accel.testing.compare import assert_accurate

pytestmark = pytest.mark.cuda
HALVES = DTYPES[2:]
LARGE = [
    # b, h, w, c, n, kernel, stride, padding
    (2, 64, 48, 128, 256, 3, 1, 1),
    (1, 65, 63, 256, 128, 3, 2, (0, 1, 0, 1)),
    (1, 96, 96, 128, 3, 3, 1, 1),  # the last one of a decoder
    (1, 64, 64, 4, 512, 3, 1, 1),  # its first one
    (3, 33, 17, 72, 40, 1, 1, 0),
]


@pytest.fixture(autouse=True)
def _exact_reference():
    """The reference without tf32, which torch allows for convolutions unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES + LARGE, ids=str)
def test_conv2d(geometry, dtype):
    *shape, stride, padding = geometry
    args = case(*shape, dtype)
    check(args, stride=stride, padding=padding)
    check((*args, "silu"), grads=False, stride=stride, padding=padding)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual_and_wide_result(dtype):
    x, w, b = case(2, 31, 20, 64, 96, 3, dtype)
    r = torch.randn(2, 31, 20, 96).to(dtype)
    check((x, w, b, "none", r), padding=1)
    if dtype in HALVES:
        wide = ops.conv2d(x, w, b, "gelu", r.float(), padding=1)
        truth = reference.conv2d(x.double(), w.double(), b.double(), "gelu", r.double(), padding=1)
        assert wide.dtype == torch.float32
        torch.testing.assert_close(wide.double(), truth, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 33, 20, 128, 64, 3), (1, 7, 5, 3, 5, 3)], ids=str)
def test_upsample_conv2d(shape, dtype):
    assert_accurate(ops.upsample_conv2d, reference.upsample_conv2d, case(*shape, dtype))


def test_strided_and_misaligned_images():
    base = torch.randn(2, 16, 17, 65).half()
    _, w, b = case(1, 1, 1, 32, 24, 3, torch.float16)
    for x in (
        base[:, ::2, :, :32],
        base[..., 1:33],
        base.transpose(1, 2)[..., 8:40],
        base[..., ::2][..., :32],
    ):
        check((x, w, b), padding=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 65, 33, 128), 32), ((1, 256, 256, 128), 32), ((3, 33), 3), ((1, 40, 2056), 257), ((1, 6, 6), 6)],
    ids=str,
)
def test_group_norm(shape, groups, dtype):
    for activation in ("none", "silu"):
        assert_accurate(ops.group_norm, reference.group_norm, norm_case(shape, groups, dtype, activation))


def test_group_norm_of_a_large_mean():
    x, *rest = norm_case((2, 90, 90, 64), 8)
    assert_accurate(ops.group_norm, reference.group_norm, (x + 1e4, *rest), grads=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_image_is_independent_of_the_batch_and_repeats(dtype):
    x, w, b = case(3, 40, 30, 64, 128, 3, dtype)
    gamma, beta = torch.randn(128).to(dtype), torch.randn(128).to(dtype)

    def run(x):
        leaves = [t.clone().requires_grad_() for t in (x, w, b, gamma, beta)]
        h = ops.conv2d(*leaves[:3], padding=1)
        y = ops.group_norm(h, 32, *leaves[3:], activation="silu")
        y.backward(torch.ones_like(y))
        return [y.detach(), *(t.grad for t in leaves)]

    whole = run(x)
    assert all(torch.equal(p, q) for p, q in zip(whole, run(x), strict=True))
    one = run(x[1:2])
    assert torch.equal(whole[0][1:2], one[0])
    assert torch.equal(whole[1][1:2], one[1])


def test_graph_capture():
    x, w, b = case(1, 32, 32, 64, 64, 3, torch.bfloat16)
    gamma = torch.ones(64).bfloat16()

    def run():
        return ops.upsample_conv2d(ops.group_norm(x, 32, gamma, gamma, activation="silu"), w, b)

    with torch.no_grad():
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = run()
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(y, run())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_autoencoder(dtype):
    with torch.device("cpu"):
        model = va.create_model(
            "autoencoder_kl_sd", block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8
        ).eval()
    x = torch.rand(2, 3, 40, 56, device="cpu") * 2 - 1

    def run(device, dtype):
        m = copy.deepcopy(model).to(device, dtype)
        z = m.encode(x.to(device, dtype)).mean
        y = m.decode(z)
        grads = torch.autograd.grad(y.float().square().mean(), list(m.parameters()))
        return [t.detach().double().cpu() for t in (z, y, *grads)]

    allowed = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    for got, truth in zip(run("cuda", dtype), run("cpu", torch.float64), strict=True):
        assert (got - truth).abs().max() <= allowed * max(truth.abs().max(), 1e-3)
