# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from torch import nn

import vision_accel as va
from tests import reference_libs
from vision_accel.train.config import OptimOptions
from vision_accel.train.optim import SGD, AdamW, create_optimizer, pack_state, param_groups, unpack_state

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}


def vit(**options):
    return va.create_model("vit_tiny_patch16_224", **{**TINY, **options})


def train(model, optimizer, steps=6, scale=1.0, skip=()):
    torch.manual_seed(1)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        for name, p in model.named_parameters():
            p.grad *= scale
            if name in skip and step % 2:
                p.grad = None
        optimizer.step(**({} if scale == 1.0 else {"grad_scale": 1 / scale}))


@pytest.mark.parametrize("skip", [(), ("head.weight", "blocks.0.norm1.bias")])
def test_adamw_equals_torch(skip):
    ours, theirs = vit(reg_tokens=2), None
    theirs = copy.deepcopy(ours)
    groups = param_groups(ours, 0.3, 0.8)
    theirs_groups = param_groups(theirs, 0.3, 0.8)
    for group in [*groups, *theirs_groups]:
        group["lr"] = 1e-3 * group["lr_scale"]
    train(ours, AdamW(groups, betas=(0.8, 0.95), eps=1e-6), skip=skip)
    train(theirs, torch.optim.AdamW(theirs_groups, betas=(0.8, 0.95), eps=1e-6), skip=skip)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_gradients_may_be_scaled(name):
    models = [vit()]
    models.append(copy.deepcopy(models[0]))
    for model, scale in zip(models, (1.0, 64.0), strict=True):
        train(model, create_optimizer(model, OptimOptions(name=name, lr=1e-3)), scale=scale)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_no_decay_on_norms_biases_and_tokens():
    model = vit(reg_tokens=2)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for g in param_groups(model, 0.1) if g["weight_decay"] for p in g["params"]}
    kinds = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    blocks = {f"blocks.{i}.{k}" for i in range(3) for k in kinds}
    assert decayed == {"patch_embed.proj.weight", "head.weight", *blocks}
    assert sum(len(g["params"]) for g in param_groups(model, 0.1)) == len(names)


@pytest.mark.parity
@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"num_classes": 0}, {"pre_norm": True}])
def test_layer_decay_equals_timm(options):
    timm = reference_libs.timm()
    from timm.optim import param_groups_layer_decay

    model = vit(**options)
    theirs = timm.models.VisionTransformer(**{**TINY, **options})

    def table(module, groups):
        names = {id(p): n for n, p in module.named_parameters()}
        return {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}

    expected = table(theirs, param_groups_layer_decay(theirs, 0.1, theirs.no_weight_decay(), layer_decay=0.7))
    assert table(model, param_groups(model, 0.1, 0.7)) == expected


def test_frozen_parameters_are_left_out():
    model = vit()
    model.patch_embed.requires_grad_(False)
    frozen = {id(p) for p in model.patch_embed.parameters()}
    assert not frozen & {id(p) for g in param_groups(model, 0.1, 0.5) for p in g["params"]}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("by_name", [True, False])
def test_state_goes_round(name, by_name):
    options = OptimOptions(name=name, lr=1e-3, layer_decay=0.9)
    straight = vit()
    broken = copy.deepcopy(straight)
    optimizer = create_optimizer(straight, options)
    train(straight, optimizer)
    train(straight, optimizer)
    first = create_optimizer(broken, options)
    train(broken, first)
    second = create_optimizer(broken, options)
    if by_name:
        unpack_state(broken, second, *pack_state(broken, first))
    else:
        second.load_state_dict(first.state_dict())
    train(broken, second)
    assert all(map(torch.equal, straight.parameters(), broken.parameters()))


def test_state_of_another_model_is_refused():
    model, other = vit(), vit(embed_dim=24)
    optimizer = create_optimizer(model, OptimOptions())
    train(model, optimizer, 1)
    with pytest.raises(ValueError, match="no parameter of that name and shape"):
        unpack_state(other, create_optimizer(other, OptimOptions()), *pack_state(model, optimizer))


def test_closure():
    p = nn.Parameter(torch.ones(2))

    def loss():
        p.grad = None
        value = p.sum()
        value.backward()
        return value

    assert AdamW([p], lr=0.1).step(loss).item() == 2.0
    assert SGD([p], lr=0.1).step(loss).item() < 2.0
