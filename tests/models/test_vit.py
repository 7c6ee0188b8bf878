# SPDX-License-Identifier: Apache-2.0
"""What the ViT promises: exact shortcuts, batch invariance, options that act, clear errors."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch

import vision_accel as va
from tests.models.vit_cases import assert_close, images, make
from vision_accel.models import ViTConfig


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
        mean = attention(x.expand(4000, -1, -1)).mean(0)
        exact = attention.eval()(x)
    assert (mean - exact).abs().max() < 0.05


def test_reset_classifier():
    model = make()
    model.labels = {0: "cat"}
    model.reset_classifier(3, "avg")
    assert model(images(model)).shape == (2, 3)
    assert model.num_classes == model.get_classifier().out_features == 3
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
        ({"depth": 1.5}, "depth must be a whole number, got 1.5"),
        ({"norm_eps": float("nan")}, "norm_eps must be 0 or more"),
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
    config = ViTConfig().replace(img_size=[64, 32], patch_size=8, num_classes=np.int64(3), norm_eps="1e-5")
    assert config.img_size == (64, 32)
    assert (type(config.num_classes), config.norm_eps) == (int, 1e-5)
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
    model = make(init_values=0.1)
    x = images(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert other.config == model.config
    assert all(isinstance(m, torch.nn.Linear) for m in (model.head, model.blocks[0].attn.qkv))
