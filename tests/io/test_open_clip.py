# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of open_clip, written by open_clip, read by us, and the way back."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vision_accel as va
from tests import reference_libs
from vision_accel.models.clip_config import CLIPConfig, clip_variants

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning")]  # timm's old names

FILE = "open_clip_model.safetensors"


def shake(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model.eval()


def draw(seed):
    """A random model_cfg with a native image tower."""
    rng = random.Random(seed)
    vision_heads, text_heads = rng.choice([1, 2, 3]), rng.choice([1, 2])
    quick = rng.random() < 0.5
    vision = {
        "image_size": rng.choice([32, [32, 48], 40]), "patch_size": 8, "layers": rng.choice([1, 2]),
        "width": vision_heads * 16, "head_width": 16, "mlp_ratio": rng.choice([2.0, 4.3637]),
        "no_ln_pre": rng.random() < 0.3, "pool_type": rng.choice(["tok", "tok", "avg"]),
        "final_ln_after_pool": rng.random() < 0.3, "ls_init_value": rng.choice([None, 0.0, 0.3]),
    }  # fmt: skip
    text = {
        "context_length": rng.choice([8, 21, 77]), "vocab_size": 60, "width": text_heads * 24,
        "heads": text_heads, "layers": rng.choice([1, 2]), "ls_init_value": rng.choice([None, 0.0, 0.2]),
        "pool_type": rng.choice(["argmax", "eos", "last", "first"]), "eos_id": 7,
        "no_causal_mask": rng.random() < 0.3, "proj_bias": rng.random() < 0.3,
        "norm_kwargs": rng.choice([None, {"eps": 1e-6}]),
    }  # fmt: skip
    if not quick and rng.random() < 0.5:
        text["act_kwargs"] = {"approximate": "tanh"}
    config = {"embed_dim": rng.choice([12, 24]), "quick_gelu": quick, "vision_cfg": vision, "text_cfg": text}
    if rng.random() < 0.5:
        config["init_logit_bias"] = -10
    if rng.random() < 0.5:
        config["custom_text"] = True
    return config


def build(config):
    open_clip = reference_libs.open_clip()
    arguments = {k: v for k, v in config.items() if k != "custom_text"}
    cls = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    return shake(cls(**arguments))


def save(model, config, directory, preprocess=None):
    directory.mkdir()
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, directory / FILE)
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (directory / "open_clip_config.json").write_text(json.dumps(content))


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def compare(theirs, ours, size, context, vocab=60):
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, *size, generator=rng)
    tokens = torch.randint(8, vocab - 1, (4, context), generator=rng)
    for i in range(3):
        place = int(torch.randint(1, context, (), generator=rng))
        tokens[i, place:] = 0
        tokens[i, place] = 7 if i else vocab - 1
    with torch.no_grad():
        for normalize in (False, True):
            theirs_image = theirs.encode_image(images, normalize=normalize)
            assert_close(ours.encode_image(images, normalize=normalize), theirs_image)
            theirs_text = theirs.encode_text(tokens, normalize=normalize)
            assert_close(ours.encode_text(tokens, normalize=normalize), theirs_text)
        for a, b in zip(ours(images, tokens), theirs(images, tokens), strict=True):
            assert_close(a, b)
        for a, b in zip(ours.get_logits(images, tokens), theirs.get_logits(images, tokens), strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("seed", range(12))
def test_there_and_back(seed, tmp_path):
    config = draw(seed)
    theirs = build(config)
    save(theirs, config, tmp_path / "a")
    ours = va.load(tmp_path / "a")
    size, context = ours.config.vision.img_size, config["text_cfg"]["context_length"]
    compare(theirs, ours, size, context)
    va.save(ours, tmp_path / "b", layout="open_clip")
    again = reference_libs.open_clip().create_model(f"local-dir:{tmp_path / 'b'}").eval()
    compare(again, ours, size, context)
    before, after = (
        {
            k.removeprefix("text."): v
            for k, v in load_file(tmp_path / d / "open_clip_model.safetensors").items()
        }
        for d in "ab"
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k].reshape(after[k].shape), after[k]) for k in before)


def test_norm_only_after_pooling(tmp_path):
    config = draw(0)
    config["vision_cfg"] |= {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    theirs = build(config)
    save(theirs, config, tmp_path / "a")
    ours = va.load(tmp_path / "a")
    compare(theirs, ours, ours.config.vision.img_size, config["text_cfg"]["context_length"])


def timm_config(**vision):
    text = {
        "context_length": 16, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2, "no_causal_mask": True,
        "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6},
    }  # fmt: skip
    tower = {"image_size": 160, "timm_model_pretrained": False, **vision}
    return {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": tower,
        "text_cfg": text,
    }


@pytest.mark.parametrize(
    ("vision", "embed_dim"),
    [
        ({"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}, 96),
        ({"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "linear"}, 20),
        (
            {
                "timm_model_name": "test_vit",
                "timm_pool": "avg",
                "timm_proj": "linear",
                "timm_proj_bias": True,
            },
            20,
        ),
        ({"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "none"}, 64),
        ({"timm_model_name": "test_vit.r160_in1k", "timm_pool": "", "timm_proj": "linear"}, 20),
    ],
)
def test_timm_towers(vision, embed_dim, tmp_path):
    config = timm_config(**vision) | {"embed_dim": embed_dim}
    theirs = build(config)
    save(theirs, config, tmp_path / "a", {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"})
    ours = va.load(tmp_path / "a")
    assert ours.preprocess.resize == "squash"
    assert ours.preprocess.mean == (0.5, 0.5, 0.5)
    compare(theirs, ours, (160, 160), 16)
    va.save(ours, tmp_path / "b", layout="open_clip")
    again, _, transform = reference_libs.open_clip().create_model_and_transforms(
        f"local-dir:{tmp_path / 'b'}"
    )
    compare(again.eval(), ours, (160, 160), 16)
    assert "Resize(size=(160, 160)" in str(transform)


def test_bare_state_dicts(tmp_path):
    """Native names, with text. in front, and saved from DistributedDataParallel as a pickle."""
    config = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
        "text_cfg": {"context_length": 16, "vocab_size": 512, "width": 48, "heads": 2, "layers": 2},
    }  # fmt: skip
    theirs = build(config)
    state = theirs.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pt")
    text = ("transformer.", "token_", "positional_embedding", "ln_final", "text_projection")
    save_file(
        {f"text.{k}" if k.startswith(text) else k: v.contiguous() for k, v in state.items()},
        tmp_path / "b.safetensors",
    )
    for file in ("a.pt", "b.safetensors"):
        ours = va.create_model("test_clip", pretrained=tmp_path / file).eval()
        compare(theirs, ours, (32, 32), 16, 512)
    with pytest.raises(ValueError, match=r"a.pt: .*missing visual.blocks.2"):
        va.create_model("test_clip", pretrained=tmp_path / "a.pt", vision={"depth": 5})
    with pytest.raises(ValueError, match=r"a.pt: .*of another shape visual.cls_token"):
        va.create_model("test_clip", pretrained=tmp_path / "a.pt", vision={"embed_dim": 32})


def test_names_are_open_clips():
    """Every configuration of ours with a name of open_clip's is open_clip's."""
    from vision_accel.io import open_clip as layout
    from vision_accel.models.clip import _with_timm_tower

    folder = Path(reference_libs.open_clip().__file__).parent / "model_configs"
    compared = 0
    for file in sorted(folder.glob("ViT-*.json")):
        if file.stem not in clip_variants():
            continue
        theirs = json.loads(file.read_text())
        config = CLIPConfig().replace(**_with_timm_tower(layout.read_config(theirs)))
        ours = CLIPConfig.named(file.stem)
        if theirs["text_cfg"].get("pool_type", "argmax") != "eos":
            ours = ours.replace(**{"text.eos_id": config.text.eos_id})
        for name in ("mlp_ratio", "fc_norm"):
            assert ours.vision.hidden_dim == config.vision.hidden_dim
            assert ours.vision.norm_after_pool == config.vision.norm_after_pool
            ours = ours.replace(**{f"vision.{name}": getattr(config.vision, name)})
        assert ours.text.hidden_dim == config.text.hidden_dim
        ours = ours.replace(**{"text.mlp_ratio": config.text.mlp_ratio})
        assert ours == config, file.stem
        compared += 1
    assert compared > 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"quick_gelu": True, "text_cfg": {"act_kwargs": {"approximate": "tanh"}}},
            "quick_gelu = true contradicts",
        ),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "is a ResNet"),
        ({"vision_cfg": {"attentional_pool": True}}, "vision_cfg.attentional_pool = True is not supported"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "hf_model_name = 'roberta-base' is not supported"),
        ({"text_cfg": {"embed_cls": True}}, "embed_cls = True is not supported"),
        ({"multimodal_cfg": {}}, "model_cfg.multimodal_cfg = {} is not known here"),
        (
            {"vision_cfg": {"timm_model_name": "convnext_base"}},
            "unknown model 'convnext_base'",
        ),
        ({"vision_cfg": {"width": "a"}}, "vision_cfg.width must be a whole number, got 'a'"),
        ({"text_cfg": {"mlp_ratio": "a"}}, "text_cfg.mlp_ratio must be a number, got 'a'"),
        ({"text_cfg": {"norm_kwargs": {"eps": {}}}}, r"text_cfg.norm_kwargs.eps must be a number, got {}"),
        ({"vision_cfg": {"qk_norm": True}}, "qk_norm = True is not supported"),
    ],
)
def test_bad_configs(change, message, tmp_path):
    config = draw(0) | {"quick_gelu": False}
    save(build(config), config, tmp_path / "a")
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(config.get(key), dict) else value
    (tmp_path / "a/open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(ValueError, match=message):
        va.load(tmp_path / "a")


def test_both_layouts_in_one_directory(tmp_path):
    model = va.create_model("test_clip")
    va.save(model, tmp_path)
    va.save(model, tmp_path, layout="open_clip")
    assert va.load(tmp_path).config.text.act_layer == "gelu"
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"'gelu', but open_clip_config.json says quick_gelu True"):
        va.load(tmp_path)
    (tmp_path / "config.json").unlink()
    assert va.load(tmp_path).config.text.act_layer == "quick_gelu"


def test_hf_to_open_clip(tmp_path):
    """The road that people have asked for: transformers -> open_clip -> transformers."""
    hf = reference_libs.transformers()
    towers = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
    config = hf.CLIPConfig(
        text_config=towers | {"vocab_size": 60, "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config=towers | {"image_size": 32, "patch_size": 8},
    )
    theirs = shake(hf.CLIPModel(config))
    theirs.save_pretrained(tmp_path / "a")
    va.save(va.load(tmp_path / "a"), tmp_path / "b", layout="open_clip")
    converted = reference_libs.open_clip().create_model(f"local-dir:{tmp_path / 'b'}").eval()
    images, tokens = torch.randn(2, 3, 32, 32), torch.randint(0, 60, (3, 16))
    with torch.no_grad():
        expected = theirs(input_ids=tokens, pixel_values=images).logits_per_image
        assert_close(converted.get_logits(images, tokens)[0], expected)
    va.save(va.load(tmp_path / "b"), tmp_path / "c")
    with torch.no_grad():
        back = hf.CLIPModel.from_pretrained(tmp_path / "c").eval()
        assert_close(back(input_ids=tokens, pixel_values=images).logits_per_image, expected)
