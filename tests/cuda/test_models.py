# SPDX-License-Identifier: Apache-2.0
"""Models on a GPU against the same model in float64 on the CPU."""

import copy

import pytest
import torch

import vision_accel as va
from vision_accel.infer import _graph

pytestmark = pytest.mark.cuda
SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2, "num_classes": 16}
ERROR = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def vit():
    with torch.device("cpu"):
        return va.create_model("vit_tiny_patch16_224", **SMALL)


@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
def test_vit_forward_and_gradients(dtype):
    model = vit()
    x, target = torch.randn(5, 3, 64, 64, device="cpu"), torch.tensor([3, 1, 4, 1, 5], device="cpu")

    def run(device, dtype):
        m = copy.deepcopy(model).to(device, dtype)
        logits = m(x.to(device, dtype))
        va.ops.cross_entropy(logits, target.to(device)).backward()
        return [t.double().cpu() for t in (logits.detach(), *(p.grad for p in m.parameters()))]

    for got, truth in zip(run("cuda", dtype), run("cpu", torch.float64), strict=True):
        assert (got - truth).abs().max() <= ERROR[dtype] * max(truth.abs().max(), 1e-3)


def test_load_on_the_gpu(tmp_path):
    va.save(vit(), tmp_path)
    model = va.load(tmp_path, device="cuda", dtype=torch.bfloat16)
    weight = next(model.parameters())
    assert weight.is_cuda
    assert weight.dtype == torch.bfloat16


@torch.inference_mode()
def test_replayed_graphs_give_the_same_bits_and_see_new_weights():
    model = vit().cuda().eval()
    for batch in (1, 3):
        for _ in range(2):
            x = torch.randn(batch, 3, 64, 64)
            assert torch.equal(_graph.run(model, "logits", model, x), model(x))
    model.head.weight.mul_(2)
    assert torch.equal(_graph.run(model, "logits", model, x), model(x))


def test_a_training_run_goes_down():
    model = vit().cuda()
    optimizer = va.train.optim.AdamW(model.parameters(), lr=1e-3)
    x, target = torch.randn(16, 3, 64, 64), torch.arange(16)
    losses = []
    for _ in range(20):
        with torch.autocast("cuda", torch.bfloat16):
            loss = va.ops.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
