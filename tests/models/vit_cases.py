# SPDX-License-Identifier: Apache-2.0
"""Small Vision Transformers, and the same ones from timm."""

import random
from functools import partial

import torch

import vision_accel as va
from tests import reference_libs
from vision_accel.models import ViTConfig

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}


def make(**options):
    """A small ViT whose every parameter matters: nothing is left at zero or one."""
    model = va.ViT(ViTConfig().replace(**{**SMALL, **options}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model.eval()


def images(model, batch=2):
    return torch.randn(batch, model.config.in_chans, *model.config.img_size)


def draw(seed):
    """A random configuration in timm's words, and what timm takes as classes: norm eps, activation, MLP."""
    rng = random.Random(seed)
    class_token = rng.random() < 0.6
    args = {
        "img_size": rng.choice([(32, 48), (40, 40), (33, 50), 32]),
        "patch_size": rng.choice([8, (8, 16), (4, 8)]),
        "in_chans": rng.choice([1, 3, 4]),
        "num_classes": rng.choice([0, 7]),
        "global_pool": rng.choice(["", "avg", "max", "avgmax", "map"] + ["token"] * 5 * class_token),
        "embed_dim": rng.choice([32, 48]),
        "depth": rng.choice([0, 1, 3]),
        "num_heads": rng.choice([1, 2, 4]),
        "mlp_ratio": rng.choice([2, 4, 3.25]),
        "dynamic_img_size": rng.random() < 0.3,
        "class_token": class_token,
        "reg_tokens": rng.choice([0, 3]),
        "init_values": rng.choice([None, 1e-5, 0.3]),
        "pos_embed": rng.choice(["learn", "learn", "none"]),
        "fc_norm": rng.choice([None, True, False]),
    }
    args["dynamic_img_pad"] = args["dynamic_img_size"] and rng.random() < 0.5
    for name in ("qkv_bias", "proj_bias", "qk_norm", "no_embed_class", "pre_norm", "final_norm"):
        args[name] = rng.random() < 0.5
    for name in ("scale_attn_norm", "scale_mlp_norm", "pool_include_prefix"):
        args[name] = rng.random() < 0.3
    classes = {
        "norm_eps": rng.choice([1e-6, 1e-5, 1e-12]),
        "act_layer": rng.choice(["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "hard_swish"]),
        "mlp_layer": rng.choice(["mlp", "mlp", "swiglu"]),
    }
    return args, classes


def pair(seed):
    """The same random model from timm and from us."""
    timm = reference_libs.timm()
    args, classes = draw(seed)
    theirs = timm.models.VisionTransformer(
        **args,
        norm_layer=partial(timm.layers.LayerNorm, eps=classes["norm_eps"]),
        act_layer=classes["act_layer"],
        mlp_layer=timm.layers.SwiGLUPacked if classes["mlp_layer"] == "swiglu" else timm.layers.Mlp,
    ).eval()
    ours = make(**args, **classes)
    theirs.load_state_dict(ours.state_dict())  # strict: names and shapes are timm's
    h, w = ours.config.img_size
    if args["dynamic_img_pad"]:
        h, w = h + 3, w - 5
    elif args["dynamic_img_size"]:
        h, w = 5 * ours.config.patch_size[0], 6 * ours.config.patch_size[1]
    return theirs, ours, torch.randn(2, args["in_chans"], h, w)


def assert_close(ours, theirs, bound=1e-4):
    """Within ``bound`` of the largest reference value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= bound * theirs.abs().max()
