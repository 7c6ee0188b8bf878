# SPDX-License-Identifier: Apache-2.0
"""Autoencoders of diffusers with random weights, small and of odd shapes."""

import torch

from tests import reference_libs

CONFIGS = {
    "plain": {"block_out_channels": (32, 64), "norm_num_groups": 16, "latent_channels": 3},
    "three levels, mish": {"block_out_channels": (32, 64, 96), "layers_per_block": 2, "act_fn": "mish"},
    "no attention, no quantisation convolutions, relu": {
        "block_out_channels": (32, 32, 64),
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "act_fn": "relu",
        "shift_factor": 0.1159,
        "scaling_factor": 0.3611,
    },
    "one level, other channels": {
        "in_channels": 1,
        "out_channels": 2,
        "block_out_channels": (36,),
        "norm_num_groups": 9,
        "act_fn": "gelu",
    },
}


def reference(**config):
    """A diffusers AutoencoderKL whose norms and biases are random, too."""
    n = len(config["block_out_channels"])
    torch.manual_seed(0)
    model = reference_libs.diffusers().AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n, **config
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(torch.randn_like(p), alpha=0.2)
    return model.eval()


def images(model, batch=2, size=(24, 40)):
    return torch.rand(batch, model.config.in_channels, *size) * 2 - 1
