# SPDX-License-Identifier: Apache-2.0
"""The ViT against timm's for random configurations; its promises: shortcuts, batch invariance, errors."""

import dataclasses
import random
from functools import partial

import pytest
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


@pytest.mark.parity
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


@pytest.mark.parity
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


@pytest.mark.parity
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
        early = ours.forward_intermediates(x, [0], norm=norm, stop_early=True, intermediates_only=True)
        assert_close(early[0], mine[0][0])


@pytest.mark.parity
def test_variants_are_timms():
    timm = reference_libs.timm()
    names = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
    with torch.device("meta"):
        for name in va.list_models()[::5]:
            theirs, ours = timm.create_model(name, num_classes=5), va.create_model(name, num_classes=5)
            shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
            assert shapes[0] == shapes[1], name
            c, block = ours.config, theirs.blocks[0]
            assert c.num_heads == block.attn.num_heads, name
            assert c.norm_eps == block.norm1.eps, name
            assert c.act_layer == names[type(block.mlp.act).__name__], name
            assert c.img_size == theirs.patch_embed.img_size, name
            assert (c.global_pool, c.no_embed_class) == (theirs.global_pool, theirs.no_embed_class), name


@pytest.mark.parity
def test_training_interface_matches_timm():
    theirs, ours, _ = pair(5)
    assert ours.no_weight_decay() == theirs.no_weight_decay() - {"dist_token"}
    assert ours.group_matcher() == theirs.group_matcher()
    from timm.models import group_parameters

    timm_layers = {
        n: i for i, names in group_parameters(theirs, theirs.group_matcher()).items() for n in names
    }
    assert ours.layer_ids() == timm_layers
    assert ours.num_params() == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parity
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


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "init_values": 0.1}, {"reg_tokens": 2}])
def test_class_token_shortcut_is_exact(options):
    model = make(**options)
    x = images(model, 3)
    full = model.forward_head(model.forward_features(x))
    short = model(x)
    assert (short - full).abs().max() <= 2e-6 * full.abs().max()
    grads = []
    for out in (short, full):
        model.zero_grad()
        out.square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-6


def test_hooks_see_every_token():
    model = make()
    seen = []
    handle = model.blocks[-1].register_forward_hook(lambda _module, _args, out: seen.append(out.shape[1]))
    x = images(model)
    hooked = model(x)
    handle.remove()
    assert seen == [17]
    assert torch.allclose(hooked, model(x), atol=1e-5)


@pytest.mark.xfail(strict=False, reason="linear and attention are not ours yet")
@pytest.mark.parametrize("options", [{}, {"global_pool": "avg", "reg_tokens": 2}, {"global_pool": "map"}])
def test_same_bits_alone_in_a_batch_and_for_any_threads(options):
    model = make(**options, embed_dim=96)
    x = images(model, 7)
    before = torch.get_num_threads()
    results = []
    with torch.no_grad():
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results += [model(x), torch.cat([model(image[None]) for image in x])]
    torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_errs_at_most_twice_as_much_as_timm(dtype):
    theirs, ours, x = pair(5)
    with torch.no_grad():
        truth = theirs.double()(x.double())
        reference = theirs.to(dtype)(x.to(dtype)).double()
        mine = ours.to(dtype)(x.to(dtype)).double()
    assert (mine - truth).abs().max() <= 2 * (reference - truth).abs().max()


def test_float64():
    model = make()
    x = images(model)
    with torch.no_grad():
        single = model(x)
        assert_close(single.double(), model.double()(x.double()), 1e-5)


def test_gradient_checkpointing_changes_nothing():
    model = make(drop_path_rate=0.5).train()
    x, grads = images(model), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_regularisers_act_in_training_only():
    rates = {f"{name}_rate": 0.2 for name in ("drop", "pos_drop", "proj_drop", "attn_drop", "drop_path")}
    model = make(**rates, patch_drop_rate=0.5)
    x = images(model)
    plain = make()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    model(x).sum().backward()
    assert model.embed(x).shape == (2, 1 + 8, 48)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    drop = va.nn.DropPath(0.25).train()
    out = drop(torch.ones(4000, 2, 3))
    rows = out.flatten(1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert rows.unique().tolist() == [0, pytest.approx(1 / 0.75)]
    assert out.mean() == pytest.approx(1, abs=0.05)


def test_attention_dropout_is_unbiased():
    attention = va.nn.Attention(24, 2, attn_drop=0.5).train()
    x = torch.randn(1, 5, 24)
    with torch.no_grad():
        mean = torch.stack([attention(x) for _ in range(3000)]).mean(0)
        exact = attention.eval()(x)
    assert (mean - exact).abs().max() < 0.05


def test_reset_classifier():
    model = make()
    model.labels = {0: "cat"}
    model.reset_classifier(3, "avg")
    assert model(images(model)).shape == (2, 3)
    assert model.config.num_classes == 3
    assert model.labels is None
    assert not model.head.bias.any()
    model.reset_classifier(0)
    assert model(images(model)).shape == (2, 48)
    with pytest.raises(ValueError, match="attention pooling"):
        model.reset_classifier(3, "map")


def test_initial_weights_follow_the_seed_and_the_rule():
    torch.manual_seed(1)
    a = va.create_model("vit_tiny_patch16_224", depth=2)
    torch.manual_seed(1)
    b = va.create_model("vit_tiny_patch16_224", depth=2)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert a.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert a.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert not a.blocks[0].mlp.fc1.bias.any()
    assert a.cls_token.abs().max() < 1e-5


def test_empty_batch():
    model = make()
    out = model(torch.zeros(0, 3, 32, 32, requires_grad=True))
    out.sum().backward()
    assert out.shape == (0, 7)


def test_nan_image_spoils_no_other():
    model = make()
    x = images(model, 3)
    x[1, 0, 3, 3] = float("nan")
    out = model(x)
    assert out[1].isnan().all()
    assert not out[[0, 2]].isnan().any()


def test_compiles_and_exports():
    model = make()
    x = images(model)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x), model(x), 1e-5)
        exported = torch.export.export(model, (x,)).module()
        assert_close(exported(x), model(x), 1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 32, 33), (3, 32, 32), (2, 1, 32, 32), (2, 3, 32)], ids=str)
def test_wrong_image_shape(shape):
    with pytest.raises(ValueError, match=r"images must be \[B, 3, 32, 32\], got \["):
        make()(torch.zeros(shape))


def test_wrong_image_type_and_dynamic_size():
    with pytest.raises(TypeError, match=r"floating point, got torch\.uint8"):
        make()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="multiples of 8 and 8, got 33 and 40"):
        make(dynamic_img_size=True)(torch.zeros(1, 3, 33, 40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "num_heads must be a divisor of 48, got 5"),
        ({"act_layer": "prelu"}, "act_layer must be one of gelu, .*got 'prelu'"),
        ({"global_pool": "mean"}, "global_pool must be one of .*got 'mean'"),
        ({"class_token": False}, "needs class_token=True"),
        ({"patch_size": 0}, "patch_size must be one or two positive integers, got 0"),
        ({"img_size": (32, 32, 3)}, "img_size must be one or two positive integers"),
        ({"patch_size": 64}, "larger than img_size"),
        ({"drop_path_rate": 1.5}, "drop_path_rate must be between 0 and 1"),
        ({"mlp_layer": "swiglu", "mlp_ratio": 49 / 48}, "even hidden size, got 49"),
    ],
)
def test_bad_config(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_config_is_frozen_and_complete():
    config = ViTConfig().replace(img_size=[64, 32], patch_size=8)
    assert config.img_size == (64, 32)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 3


def test_names():
    assert "vit_base_patch16_224" in va.list_models()
    assert va.list_models("vit_tiny*") == ["vit_tiny_patch16_224", "vit_tiny_patch16_384"]
    model = va.create_model("vit_tiny_patch16_224", num_classes=10, img_size=(32, 64), depth=1)
    assert model.config.img_size == (32, 64)
    assert model.head.out_features == 10
    with pytest.raises(ValueError, match="unknown model 'vit_base_patch61_224'; did you mean vit_base_patch"):
        va.create_model("vit_base_patch61_224")
    with pytest.raises(TypeError, match="no option 'num_clases'; did you mean 'num_classes'"):
        va.create_model("vit_tiny_patch16_224", num_clases=3)


def test_copies_and_state_dicts_are_plain():
    import copy
    import pickle

    model = make(init_values=0.1)
    x = images(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert other.config == model.config
    assert all(isinstance(m, torch.nn.Linear) for m in (model.head, model.blocks[0].attn.qkv))
