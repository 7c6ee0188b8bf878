# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

import vision_accel as va
from bench import peers
from bench.common import Workload
from vision_accel import ops
from vision_accel.train.optim import AdamW

# timm's name -> width, depth, heads, patch of the plain twin.
VARIANTS = {"vit_small_patch16_224": (384, 12, 6, 16), "vit_base_patch16_224": (768, 12, 12, 16)}

CASES = {
    "ViT-S/16 batch 1": {"variant": "vit_small_patch16_224", "batch": 1},
    "ViT-S/16 batch 8": {"variant": "vit_small_patch16_224", "batch": 8},
    "ViT-B/16 batch 1": {"variant": "vit_base_patch16_224", "batch": 1},
    "ViT-B/16 batch 8": {"variant": "vit_base_patch16_224", "batch": 8},
    "ViT-S/16 training step, batch 8": {"variant": "vit_small_patch16_224", "batch": 8, "train": True},
}


def make(variant: str, batch: int, train: bool = False) -> Workload:
    torch.manual_seed(0)
    plain = peers.PlainViT(*VARIANTS[variant])
    model = va.create_model(variant)
    model.load_state_dict(plain.state_dict())
    x = torch.randn(batch, 3, 224, 224)
    flops = batch * plain.flops()
    if train:
        return _training_step(plain, model, x, flops)
    plain.eval(), model.eval()
    return Workload(
        ours=peers.eager(model, x),
        peers={"torch eager": peers.eager(plain, x)},
        more_peers=lambda: peers.engines(plain, x),
        flops=flops,
        images=batch,
    )


def _training_step(plain: torch.nn.Module, model: torch.nn.Module, x: torch.Tensor, flops: float) -> Workload:
    """Forward, backward and AdamW. Both are checked on the loss and the gradients of the first step."""
    target = torch.randint(1000, (len(x),))

    def step(module, loss_fn, optimizer):
        watched = [p for name, p in module.named_parameters() if name.startswith(("patch_embed", "head"))]

        def call():
            optimizer.zero_grad()
            loss = loss_fn(module(x), target)
            loss.backward()
            optimizer.step()
            return loss, [p.grad for p in watched]

        return call

    ours = step(model.train(), ops.cross_entropy, AdamW(model.parameters()))
    fused = torch.optim.AdamW(plain.parameters(), fused=True)  # torch's fastest
    peer = step(plain.train(), torch.nn.functional.cross_entropy, fused)
    return Workload(ours=ours, peers={"torch eager": peer}, flops=3 * flops, images=len(x))


@pytest.mark.parametrize("case", CASES)
def bench_vit(measure, case):
    measure(make(**CASES[case]))
