# SPDX-License-Identifier: Apache-2.0
"""The ViT against timm's, for random configurations."""

import pytest
import torch

import vision_accel as va
from tests import reference_libs
from tests.models.vit_cases import SMALL, assert_close, images, make, pair

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("seed", range(40))
def test_matches_timm(seed):
    theirs, ours, x = pair(seed)
    with torch.no_grad():
        assert_close(ours(x), theirs(x), 1e-5)
        tokens = theirs.forward_features(x)
        assert_close(ours.forward_features(x), tokens, 1e-5)
        pooled = theirs.forward_head(tokens, pre_logits=True)
        assert_close(ours(x, pre_logits=True), pooled, 1e-5)
        assert_close(ours.forward_head(ours.forward_features(x), pre_logits=True), pooled, 1e-5)


@pytest.mark.parametrize("seed", range(100, 110))
def test_gradients_match_timm(seed):
    theirs, ours, x = pair(seed)
    grads = []
    for model in (ours.train(), theirs.train()):
        out = model(x)
        model.zero_grad()
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    largest = max(g.abs().max() for g in grads[1].values() if g is not None)
    for name, g in grads[1].items():
        mine = grads[0][name]
        if g is None or mine is None:  # timm leaves out what a pooling does not reach
            assert g is None or not g.any()
            assert mine is None or not mine.any()
        else:
            assert (mine - g).abs().max() <= 1e-4 * largest, name


@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_match_timm(norm):
    theirs, ours, x = pair(5)
    depth = ours.config.depth
    with torch.no_grad():
        for indices in (None, depth, [0, -1]):
            options = {"indices": indices, "norm": norm, "return_prefix_tokens": True}
            (a, mine), (b, reference) = (m.forward_intermediates(x, **options) for m in (ours, theirs))
            assert_close(a, b)
            for p, q in zip(mine, reference, strict=True):
                for i, j in zip(p, q, strict=True):
                    assert_close(i, j)
        (last,) = ours.get_intermediate_layers(x, 1, norm=norm)
        assert_close(last, theirs.get_intermediate_layers(x, 1, norm=norm)[0])
        options = {"n": [0], "reshape": True, "return_prefix_tokens": True, "norm": norm}
        (mine_both,), (both,) = (m.get_intermediate_layers(x, **options) for m in (ours, theirs))
        for i, j in zip(mine_both, both, strict=True):
            assert_close(i, j)
        early = ours.forward_intermediates(x, [0], norm=norm, stop_early=True, intermediates_only=True)
        assert_close(early[0], mine[0][0])


def test_variants_are_timms():
    timm = reference_libs.timm()
    names = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
    with torch.device("meta"):
        for name in (
            va.list_models("vit*")[::5]
            + va.list_models("*t3_*")[::4]
            + va.list_models("flexi*")
            + ["deit_base_distilled_patch16_384"]
        ):
            theirs, ours = timm.create_model(name, num_classes=5), va.create_model(name, num_classes=5)
            shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
            assert shapes[0] == shapes[1], name
            c, block = ours.config, theirs.blocks[0]
            assert c.num_heads == block.attn.num_heads, name
            assert c.norm_eps == block.norm1.eps, name
            assert c.act_layer == names[type(block.mlp.act).__name__], name
            assert c.img_size == theirs.patch_embed.img_size, name
            assert (c.global_pool, c.no_embed_class) == (theirs.global_pool, theirs.no_embed_class), name


def distilled_pair():
    name = "deit_tiny_distilled_patch16_224"
    theirs = reference_libs.timm().create_model(name, **SMALL).eval()
    ours = va.create_model(name, **SMALL).eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours, images(ours)


@pytest.mark.parametrize("build", [lambda: pair(5), distilled_pair])
def test_training_interface_matches_timm(build):
    theirs, ours, _ = build()
    assert ours.no_weight_decay() == theirs.no_weight_decay() | {"reg_token", "dist_token"}
    from timm.models import group_parameters

    layers = [
        {n: i for i, names in group_parameters(m, m.group_matcher()).items() for n in names}
        for m in (ours, theirs)
    ]
    assert ours.layer_ids() == layers[0] == layers[1]
    assert ours.num_params() == sum(p.numel() for p in theirs.parameters())
    ours.requires_grad_(False).head.requires_grad_()
    assert ours.num_params(trainable=True) == sum(p.numel() for p in ours.head.parameters())


@pytest.mark.parametrize("both_heads", [False, True])
def test_distilled_matches_timm(both_heads):
    theirs, ours, x = distilled_pair()
    grads = []
    with torch.no_grad():
        pairs = [
            (m(x), m.forward_features(x), m.forward_head(m.forward_features(x), True)) for m in (ours, theirs)
        ]
        for a, b in zip(*pairs, strict=True):
            assert_close(a, b, 1e-5)
        assert_close(ours(x, pre_logits=True), pairs[1][2], 1e-5)
    for model in (ours.train(), theirs.train()):
        model.distilled_training = both_heads
        out = model(x)
        out = torch.stack(out) if both_heads else out
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    for name, g in grads[1].items():
        assert_close(grads[0][name], g, 1e-3)
    for model in (ours, theirs):
        model.reset_classifier(4)
        assert [h.out_features for h in model.get_classifier()] == [4, 4]


def test_distilled_excludes():
    for options in ({"global_pool": "avg"}, {"reg_tokens": 1}, {"no_embed_class": True}, {"fc_norm": True}):
        with pytest.raises(ValueError, match="with distilled=True"):
            make(distilled=True, **options)


@pytest.mark.parametrize("options", [{}, {"no_embed_class": True, "reg_tokens": 2}, {"global_pool": "avg"}])
def test_set_input_size_matches_timm(options):
    timm = reference_libs.timm()
    ours = make(**options)
    theirs = timm.models.VisionTransformer(**{**SMALL, **options}).eval()
    theirs.load_state_dict(ours.state_dict())
    for img_size, patch_size in [((40, 64), None), ((36, 60), (6, 12)), (None, (4, 4))]:
        for model in (ours, theirs):
            model.set_input_size(img_size, patch_size)
        assert ours.config.img_size == theirs.patch_embed.img_size
        state = theirs.state_dict()
        for name, value in ours.state_dict().items():
            assert_close(value, state[name], 1e-5)
        x = images(ours)
        with torch.no_grad():
            assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_errs_at_most_twice_as_much_as_timm(dtype):
    theirs, ours, x = pair(5)
    with torch.no_grad():
        truth = theirs.double()(x.double())
        reference = theirs.to(dtype)(x.to(dtype)).double()
        mine = ours.to(dtype)(x.to(dtype)).double()
    assert (mine - truth).abs().max() <= 2 * (reference - truth).abs().max()
