# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of timm's VisionTransformer, written by timm, read by us, and the way back."""

import json
import random

import pytest
import torch

import vision_accel as va
from tests import reference_libs
from vision_accel.io.tensors import read_tensors

pytestmark = pytest.mark.parity
NAMES = """
    vit_base_patch16_224 vit_base_patch32_clip_224 vit_base_patch16_clip_quickgelu_224 test_vit test_vit3
    vit_medium_patch16_gap_240 vit_base_patch14_reg4_dinov2 vit_giant_patch14_dinov2 beit3_base_patch16_224
    vit_base_patch16_siglip_224 vit_so150m_patch16_reg4_map_256 deit_tiny_distilled_patch16_224
""".split()  # noqa: SIM905


def timm_model(name, **options):
    model = reference_libs.timm().create_model(name, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model.eval()


def save_timm(model, directory):
    # With one channel, timm notes that it averages the mean colour.
    reference_libs.timm().models.save_for_hf(model, directory, safe_serialization=True)


def draw(seed):
    """A known architecture made small, and changed at random in timm's words."""
    rng = random.Random(seed)
    name = rng.choice(NAMES)
    heads = rng.choice([1, 2, 4])
    options = {
        "embed_dim": heads * rng.choice([8, 24]),
        "num_heads": heads,
        "depth": rng.choice([1, 2, 3]),
        "img_size": rng.choice([32, (32, 48), (24, 40)]),
        "patch_size": rng.choice([8, (8, 4), (4, 8)]),
        "num_classes": rng.choice([0, 3, 10]),
        "in_chans": rng.choice([3, 3, 1]),
        "mlp_ratio": 2,
    }
    extras = {
        "qkv_bias": False,
        "proj_bias": False,
        "qk_norm": True,
        "init_values": 0.2,
        "act_layer": "gelu_tanh",
        "dynamic_img_size": True,
        "no_embed_class": True,
        "final_norm": False,
        "pool_include_prefix": True,
        "norm_layer": "layernorm",
    }
    options |= {k: v for k, v in extras.items() if rng.random() < 0.25}
    if rng.random() < 0.4 and "siglip" not in name and "map" not in name and name != "test_vit3":
        options["global_pool"] = rng.choice(["avg", "max", "avgmax"])
    return name, options


def assert_same(theirs, ours, x):
    with torch.no_grad():
        for reference, mine in [
            (theirs(x), ours(x)),
            (theirs.forward_features(x), ours.forward_features(x)),
        ]:
            assert mine.shape == reference.shape
            assert (mine - reference).abs().max() <= 1e-4 * reference.abs().max()


@pytest.mark.parametrize("seed", range(24))
def test_there_and_back(tmp_path, seed):
    timm = reference_libs.timm()
    name, options = draw(seed)
    theirs = timm_model(name, **options)
    save_timm(theirs, tmp_path / "a")
    ours = va.load(tmp_path / "a")
    x = torch.randn(2, ours.config.in_chans, *ours.config.img_size)
    assert_same(theirs, ours, x)
    va.save(ours, tmp_path / "b", layout="timm")
    before, after = read_tensors(tmp_path / "a"), read_tensors(tmp_path / "b")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    again = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True).eval()
    assert_same(again, ours, x)
    assert va.load(tmp_path / "b").config == ours.config


@pytest.mark.parametrize(("img_size", "patch_size"), [((48, 64), None), (24, None), (30, (6, 10))])
def test_image_size_change_matches_timm(tmp_path, img_size, patch_size):
    timm = reference_libs.timm()
    theirs = timm_model(
        "vit_base_patch16_224", img_size=32, patch_size=8, embed_dim=24, num_heads=2, depth=2, num_classes=4
    )
    save_timm(theirs, tmp_path)
    change = {"img_size": img_size} | ({"patch_size": patch_size} if patch_size else {})
    reference = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **change).eval()
    ours = va.load(tmp_path, **change)
    assert_same(reference, ours, torch.randn(2, 3, *ours.config.img_size))


def test_from_scratch_to_timm(tmp_path):
    timm = reference_libs.timm()
    ours = va.create_model("vit_tiny_patch16_224", num_classes=3, img_size=(32, 64), depth=2).eval()
    ours.labels = {0: "cat", 1: "dog", 2: "emu"}
    va.save(ours, tmp_path, layout="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert theirs.pretrained_cfg["label_names"] == ["cat", "dog", "emu"]
    assert_same(theirs, ours, torch.randn(2, 3, 32, 64))
    assert va.load(tmp_path).labels == ours.labels
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"


def test_transformers_to_timm(tmp_path):
    hf, timm = reference_libs.transformers(), reference_libs.timm()
    sizes = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 37}
    config = hf.ViTConfig(**sizes, num_hidden_layers=2, image_size=32, patch_size=8)
    theirs = hf.ViTForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    with pytest.raises(ValueError, match="timm cannot express norm_eps=1e-12"):
        va.save(va.load(tmp_path / "hf"), tmp_path / "timm", layout="timm")
    assert not (tmp_path / "timm").exists()
    va.save(va.load(tmp_path / "hf", norm_eps=1e-6), tmp_path / "timm", layout="timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(x), theirs(x).logits, atol=1e-4)


def test_distilled(tmp_path):
    timm = reference_libs.timm()
    name = "deit_small_distilled_patch16_224"
    theirs = timm_model(name, img_size=32, patch_size=8, embed_dim=24, num_heads=2, depth=2, num_classes=4)
    save_timm(theirs, tmp_path / "a")
    ours = va.load(tmp_path / "a")
    x = torch.randn(3, 3, 32, 32)
    assert_same(theirs, ours, x)
    assert_same(theirs.reset_classifier(0) or theirs, va.load(tmp_path / "a", num_classes=0), x)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True, img_size=(48, 64)).eval()
    assert_same(theirs, va.load(tmp_path / "a", img_size=(48, 64)), torch.randn(2, 3, 48, 64))
    fresh = va.load(tmp_path / "a", num_classes=7)
    assert fresh(x).shape == (3, 7)
    assert torch.equal(fresh.dist_token, ours.dist_token)
    assert not torch.equal(fresh.head.weight, fresh.head_dist.weight)
    va.save(ours, tmp_path / "b", layout="timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True).eval()
    assert_same(again, ours, x)
    with pytest.raises(ValueError, match="distillation without heads"):
        va.save(va.load(tmp_path / "a", num_classes=0), tmp_path / "hf")


def test_layer_scale_of_zero(tmp_path):
    timm = reference_libs.timm()
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "depth": 2}
    theirs = timm_model("deit3_small_patch16_224", **options, init_values=0)  # timm's way to have none
    save_timm(theirs, tmp_path / "a")
    ours = va.load(tmp_path / "a")
    assert ours.config.init_values is None
    x = torch.randn(2, 3, 32, 32)
    assert_same(theirs, ours, x)
    ours = va.create_model("vit_tiny_patch16_224", **options, init_values=0.0).eval()  # ours is one of zeros
    ours.blocks[0].ls1.gamma.data.fill_(0.5)
    va.save(ours, tmp_path / "b", layout="timm")
    assert_same(timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True).eval(), ours, x)


def test_preprocessing(tmp_path):
    theirs = timm_model("vit_base_patch16_clip_224", embed_dim=24, num_heads=2, depth=1, num_classes=4)
    save_timm(theirs, tmp_path / "a")
    model = va.load(tmp_path / "a")
    cfg = theirs.pretrained_cfg
    assert (model.preprocess.mean, model.preprocess.std) == (tuple(cfg["mean"]), tuple(cfg["std"]))
    assert model.preprocess.resize_to == (235, 235)  # 224 / 0.95
    va.save(model, tmp_path / "b", layout="timm")
    assert va.load(tmp_path / "b").preprocess == model.preprocess
    saved = json.loads((tmp_path / "b" / "config.json").read_text())["pretrained_cfg"]
    assert {k: saved[k] for k in ("crop_mode", "mean", "std", "interpolation", "input_size")} == {
        k: list(cfg[k]) if isinstance(cfg[k], tuple) else cfg[k]
        for k in ("crop_mode", "mean", "std", "interpolation", "input_size")
    }
    assert va.load(tmp_path / "a", img_size=448).preprocess.resize_to == (470, 470)


def test_older_config_and_background_class(tmp_path):
    theirs = timm_model("vit_tiny_patch16_224", embed_dim=24, num_heads=2, depth=1, num_classes=4)
    save_timm(theirs, tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["pretrained_cfg"]["label_offset"] = 1
    config["num_classes"] = config["model_args"]["num_classes"] = 3
    file.write_text(json.dumps(config))
    ours = va.load(tmp_path)
    assert torch.equal(ours.head.weight, theirs.head.weight[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "vit_base_patch16_225"},
            "unknown model 'vit_base_patch16_225'; did you mean vit_base",
        ),
        ({"model_args": {"block_fn": "Parallel"}}, "no option 'block_fn'"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "norm_layer 'rmsnorm' is not supported"),
        ({"model_args": {"img_size": "12"}}, "model_args.img_size must be a whole number, got '12'"),
        ({"pretrained_cfg": "a"}, "pretrained_cfg must be a group of options, got 'a'"),
        ({"num_classes": 7}, r"of another shape head.weight \[4, 24\], expected \[7, 24\]"),
    ],
)
def test_config_that_does_not_fit(tmp_path, change, message):
    theirs = timm_model("vit_tiny_patch16_224", embed_dim=24, num_heads=2, depth=1, num_classes=4)
    save_timm(theirs, tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    args = {k: v for k, v in config["model_args"].items() if k != "num_classes"} | change.pop(
        "model_args", {}
    )
    file.write_text(json.dumps(config | change | {"model_args": args}))
    with pytest.raises(ValueError, match=message):
        va.load(tmp_path)
