# SPDX-License-Identifier: Apache-2.0
import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn

import vision_accel as va
from bench import peers
from bench.common import Workload
from vision_accel.train.optim import AdamW

# Stable Diffusion's autoencoder; the size is that of the image.
CASES = {
    "SD decode, 256 px": {"part": "decode", "size": 256},
    "SD decode, 256 px, within 48 MB": {"part": "decode", "size": 256, "max_memory": "48MB"},
    "SD encode, 256 px": {"part": "encode", "size": 256},
    "64-128-128, training step, 4 x 128 px": {"part": "train", "size": 128, "batch": 4},
    "32-64, training step, 8 x 64 px": {"part": "train", "size": 64, "batch": 8, "widths": (32, 64)},
    "24-48-64 (the demo), training step, 16 x 32 px": {
        "part": "train",
        "size": 32,
        "batch": 16,
        "widths": (24, 48, 64),
        "latent_channels": 8,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
    },
}


class Part(nn.Module):
    """One direction of diffusers' autoencoder, as a module of one tensor."""

    def __init__(self, model: Any, part: str) -> None:
        super().__init__()
        self.model, self.part = model, part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.part == "encode":
            return self.model.quant_conv(self.model.encoder(x))
        return self.model.decoder(self.model.post_quant_conv(x))


def make(
    part: str,
    size: int,
    batch: int = 1,
    widths: tuple[int, ...] = (64, 128, 128),
    max_memory: str | None = None,
    **options: Any,
) -> Workload:
    reference_libs = importlib.import_module("tests.reference_libs")
    diffusers = reference_libs.diffusers()
    torch.manual_seed(0)
    if part == "train":
        options |= {"block_out_channels": widths, "layers_per_block": 1}
    model = va.create_model("autoencoder_kl_sd", **options)
    c = model.config
    n = len(c.block_out_channels)
    plain = diffusers.AutoencoderKL(
        **{"block_out_channels": c.block_out_channels, "layers_per_block": c.layers_per_block, **options},
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
    )
    plain.load_state_dict(model.state_dict())
    image = torch.rand(batch, 3, size, size) * 2 - 1
    if part == "train":
        return _training_step(plain, model, image)
    x = torch.randn(batch, 4, size // c.factor, size // c.factor) if part == "decode" else image
    model.eval(), plain.eval()
    whole = Part(plain, part).eval()
    flops = _flops(whole, x)
    last = Part(copy.deepcopy(plain).to(memory_format=torch.channels_last), part)

    def ours(max_memory: str | None = max_memory) -> torch.Tensor:
        with torch.inference_mode():
            if part == "decode":
                return model.decode(x, return_dict=False, max_memory=max_memory)[0]
            p = model.encode(x, max_memory=max_memory)
            return torch.cat([p.mean, p.logvar], 1)

    return Workload(
        ours,
        {
            **({"without a limit": lambda: ours(None)} if max_memory else {}),
            "diffusers eager": peers.eager(whole, x),
            "diffusers channels_last": peers.eager(last, x.to(memory_format=torch.channels_last)),
        },
        more_peers=lambda: peers.engines(whole, x),
        flops=flops,
        images=batch,
    )


def _flops(module: nn.Module, x: torch.Tensor) -> float:
    """Floating-point operations of diffusers' graph: what we save is not subtracted."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(x)
    return float(counter.get_total_flops())


def _training_step(plain: nn.Module, model: nn.Module, x: torch.Tensor) -> Workload:
    """L1 and KL: forward, backward and AdamW; both are checked on the loss and some gradients."""
    noise = torch.randn_like(model.encode(x).mean)

    def step(module: Any, images: torch.Tensor, optimizer: torch.optim.Optimizer) -> Any:
        watched = [p for name, p in module.named_parameters() if "conv_in" in name or "conv_out" in name]

        def call() -> Any:
            optimizer.zero_grad()
            posterior = module.encode(images).latent_dist
            y = module.decode(posterior.mean + posterior.std * noise).sample
            loss = (y - images).abs().mean() + 1e-6 * posterior.kl().mean()
            loss.backward()
            optimizer.step()
            return loss, [p.grad for p in watched]

        return call

    def peer(layout: torch.memory_format) -> Any:
        theirs = copy.deepcopy(plain).train().to(memory_format=layout)
        optimizer = torch.optim.AdamW(theirs.parameters(), fused=True)
        return step(theirs, x.to(memory_format=layout), optimizer)

    return Workload(
        step(model.train(), x, AdamW(model.parameters())),
        {
            "diffusers eager": peer(torch.contiguous_format),
            "diffusers channels_last": peer(torch.channels_last),
        },
        images=len(x),
        tolerance=1e-3,
    )


@pytest.mark.parametrize("case", CASES)
def bench_autoencoder_kl(measure, case):
    measure(make(**CASES[case]))
