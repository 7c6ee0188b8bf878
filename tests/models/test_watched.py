# SPDX-License-Identifier: Apache-2.0
"""Hooks see what timm's modules give, and modules put in the place of ours are used like any."""

import copy

import pytest
import torch

from tests import reference_libs
from tests.models.vit_cases import assert_close, images, make

PARTS = """
    patch_embed patch_embed.proj blocks.0 blocks.0.norm1 blocks.0.attn blocks.0.attn.qkv blocks.0.attn.proj
    blocks.0.ls1 blocks.0.mlp blocks.0.mlp.fc1 blocks.0.mlp.fc2 blocks.1.attn blocks.1.attn.qkv blocks.1.mlp
    blocks.1.ls2 norm head
""".split()  # noqa: SIM905


class Wrapped(torch.nn.Module):
    """As LoRA does it: another branch beside a layer, and no more than its input."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer = layer
        self.side = torch.nn.Linear(48, width, bias=False)

    def forward(self, x):
        return self.layer(x) + self.side(x)


@pytest.mark.parity
@pytest.mark.parametrize("training", [False, True])
def test_hooks_see_what_timms_modules_give(training):
    ours = make(init_values=0.3).train(training)
    theirs = reference_libs.timm().create_model(
        "vit_base_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=len(ours.blocks),
        num_heads=ours.config.num_heads, mlp_ratio=ours.config.mlp_ratio, init_values=0.3,
        num_classes=ours.config.num_classes,
    ).train(training)  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    x = images(ours)
    for name in PARTS:
        seen = []
        for model in (ours, theirs):
            part = model.get_submodule(name)
            hook = part.register_forward_hook(lambda _, args, out, to=seen: to.extend([args[0], out]))
            model(x)
            hook.remove()
        assert len(seen) == 4, name
        for mine, reference in zip(seen[:2], seen[2:], strict=True):
            assert_close(mine.reshape(reference.shape), reference)


@pytest.mark.parametrize("name", ["attn.qkv", "attn.proj", "mlp.fc1"])
@pytest.mark.parametrize("training", [False, True])
def test_replaced_layers(name, training):
    model = make(init_values=0.3, attn_drop_rate=0.0).train(training)
    changed, merged = copy.deepcopy(model), copy.deepcopy(model)
    for mine, expected in zip(changed.blocks, merged.blocks, strict=True):
        parent, _, leaf = name.rpartition(".")
        layer = mine.get_submodule(name)
        wrapped = Wrapped(layer, layer.out_features)
        setattr(mine.get_submodule(parent), leaf, wrapped)
        with torch.no_grad():
            expected.get_submodule(name).weight.add_(wrapped.side.weight)
    x = images(model)
    assert_close(changed(x), merged(x))
    changed(x).sum().backward()
    assert all(p.grad is not None for n, p in changed.named_parameters() if "side" in n)


def test_replaced_blocks_and_branches():
    class Same(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    model = make(init_values=0.3)
    x = images(model)
    expected = model(x)
    for path in (
        "blocks.1",
        "blocks.1.attn",
        "blocks.1.mlp",
        "blocks.1.norm1",
        "blocks.1.ls2",
        "patch_embed.proj",
    ):
        changed = copy.deepcopy(model)
        parent, _, leaf = path.rpartition(".")
        inner = changed.get_submodule(path)
        setattr(changed.get_submodule(parent), leaf, Same(inner))
        assert_close(changed(x), expected)
