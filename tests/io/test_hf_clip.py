# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of transformers' CLIP and SigLIP, written by transformers, read by us, and the way back."""

import itertools
import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

import vision_accel as va
from tests import reference_libs
from vision_accel.io.tensors import read_tensors

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:.*token_id must be.*"),
]
ACTIVATIONS = ["gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "gelu_new", "silu"]


def shake(model):
    """Make every parameter matter: nothing stays at zero or one."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model.eval()


def tower(rng):
    heads = rng.choice([1, 2, 3])
    return {
        "hidden_size": heads * rng.choice([8, 12, 20]),
        "num_attention_heads": heads,
        "num_hidden_layers": rng.choice([0, 1, 2]),
        "intermediate_size": rng.choice([32, 37, 101]),
        "hidden_act": rng.choice(ACTIVATIONS),
        "layer_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "attention_dropout": rng.choice([0.0, 0.1]),
    }


def draw(seed, kind):
    """A random configuration in transformers' words."""
    rng = random.Random(seed)
    image, patch = rng.choice([(32, 8), (30, 7), (24, 4)])  # both must be square
    vision = tower(rng) | {"image_size": image, "patch_size": patch, "num_channels": rng.choice([1, 3, 3])}
    text = tower(rng) | {
        "vocab_size": rng.choice([50, 99]),
        "max_position_embeddings": rng.choice([5, 16, 77]),
    }
    hf = reference_libs.transformers()
    if kind == "siglip":
        text |= {"projection_size": vision["hidden_size"], "eos_token_id": 3}
        return shake(hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision)))
    text["eos_token_id"] = rng.choice([2, text["vocab_size"] - 1, 7]) if kind == "clip" else 2
    config, model = {
        "clip": (hf.CLIPConfig, hf.CLIPModel),
        "metaclip_2": (hf.MetaClip2Config, hf.MetaClip2Model),
    }[kind]
    return shake(model(config(text_config=text, vision_config=vision, projection_dim=rng.choice([8, 17]))))


def size(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def inputs(theirs, seed=0, count=3):
    """Images, and texts that hold their end token once or, in the last one, never."""
    rng = torch.Generator().manual_seed(seed)
    v, t = theirs.config.vision_config, theirs.config.text_config
    images = torch.randn(2, v.num_channels, *size(v.image_size), generator=rng)
    tokens = torch.randint(8, t.vocab_size - 1, (count, t.max_position_embeddings), generator=rng)
    for i in range(count - 1):
        place = int(torch.randint(1, tokens.shape[1], (), generator=rng))
        tokens[i, place:] = 0
        argmax = theirs.config.model_type == "clip" and t.eos_token_id == 2
        tokens[i, place] = t.vocab_size - 1 if argmax else t.eos_token_id
    return images, tokens


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def compare(theirs, ours, images, tokens, **options):
    with torch.no_grad():
        out = theirs(input_ids=tokens, pixel_values=images, **options)
        image, text, scale, *bias = ours(images, tokens)
        assert_close(image, out.image_embeds)
        assert_close(text, out.text_embeds)
        assert_close(scale, theirs.logit_scale.exp().reshape(()))
        assert len(bias) == hasattr(theirs, "logit_bias")
        per_image, per_text = ours.get_logits(images, tokens)
        assert_close(per_image, out.logits_per_image)
        assert_close(per_text, out.logits_per_text)
        hidden = theirs.text_model(input_ids=tokens).last_hidden_state
        assert_close(ours.text.forward_features(tokens), hidden)


@pytest.mark.parametrize(
    ("kind", "seed"), [*itertools.product(["clip", "siglip"], range(8)), ("metaclip_2", 0), ("metaclip_2", 1)]
)
def test_there_and_back(kind, seed, tmp_path):
    theirs = draw(seed, kind)
    theirs.save_pretrained(tmp_path / "a")
    ours = va.load(tmp_path / "a")
    assert not ours.training
    images, tokens = inputs(theirs, seed)
    compare(theirs, ours, images, tokens)
    va.save(ours, tmp_path / "b")
    again, report = type(theirs).from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = read_tensors(tmp_path / "a"), read_tensors(tmp_path / "b")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    compare(again.eval(), ours, images, tokens)
    for part in ("vision_config", "text_config"):
        wanted = getattr(theirs.config, part)
        written = json.loads((tmp_path / "b" / "config.json").read_text())[part]
        for key in ("hidden_size", "intermediate_size", "layer_norm_eps", "num_hidden_layers"):
            assert written[key] == getattr(wanted, key)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_other_image_size(kind, tmp_path):
    theirs = draw(0, kind)
    theirs.save_pretrained(tmp_path)
    h, w = size(theirs.config.vision_config.image_size)
    new = (h * 2, w * 3)
    ours = va.load(tmp_path, img_size=new)
    images, tokens = inputs(theirs)
    images = torch.nn.functional.interpolate(images, new)
    compare(theirs, ours, images, tokens, interpolate_pos_encoding=True)


def test_shorter_context(tmp_path):
    theirs = draw(3, "clip")
    theirs.save_pretrained(tmp_path)
    length = theirs.config.text_config.max_position_embeddings
    ours = va.load(tmp_path, context_length=length - 2)
    images, tokens = inputs(theirs)
    compare(theirs, ours, images, tokens[:, : length - 2])
    with pytest.raises(ValueError, match=f"context_length must be at most the checkpoint's {length}, got 99"):
        va.load(tmp_path, context_length=99)


def test_old_files(tmp_path):
    """Position ids among the weights, and options of the towers twice."""
    theirs = draw(1, "clip")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config_dict"] = dict(config["text_config"])
    config["vision_config_dict"] = dict(config["vision_config"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    compare(theirs, va.load(tmp_path), *inputs(theirs))

    config["text_config_dict"]["hidden_act"] = "mish"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"hidden_act is .* but text_config_dict.hidden_act is 'mish'"):
        va.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["vision_config"].update(hidden_act="hardish"), "hidden_act 'hardish' is not supported"),
        (lambda c: c["vision_config"].update(image_size=64), "visual.pos_embed"),
        (lambda c: c["text_config"].update(num_hidden_layers=9), "missing text_model.encoder.layers"),
        (lambda c: c.update(model_type="blip"), "model_type 'blip' is not supported"),
        (lambda c: c["text_config"].update(hidden_size="wide"), "text_config.hidden_size .*'wide'"),
        (lambda c: c["text_config"].update(eos_token_id=[2]), r"eos_token_id must be one number, got \[2\]"),
        (lambda c: c.update(vision_config=3), "vision_config must be a group of options, got 3"),
        (lambda c: c.update(projection_dim="12"), "projection_dim must be a whole number, got '12'"),
        (lambda c: c["vision_config"].update(image_size="12"), "vision_config.image_size .*, got '12'"),
        (lambda c: c["text_config"].update(layer_norm_eps="a"), "text_config.layer_norm_eps .*, got 'a'"),
    ],
)
def test_bad_configs(change, message, tmp_path):
    draw(2, "clip").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{tmp_path}.*{message}"):
        va.load(tmp_path)


def test_contradicting_preprocessing(tmp_path):
    va.save(va.create_model("test_clip"), tmp_path)
    recipe = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(recipe))
    model = va.load(tmp_path)
    assert model.preprocess.size == (32, 32)
    assert model.preprocess.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert va.load(tmp_path, img_size=64).preprocess.size == (64, 64)
    recipe["crop_size"] = 30
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=r"takes .* \(32, 32\), but the preprocessing gives \(30, 30\)"):
        va.load(tmp_path)


def test_not_expressible(tmp_path):
    model = va.create_model("test_clip", init_logit_bias=-10.0, text_proj_bias=True)
    with pytest.raises(ValueError, match="clip cannot express text_proj_bias=True, a logit bias"):
        va.save(model, tmp_path / "a")
    model = va.create_model("test_clip", img_size=(32, 48))
    model.preprocess = None  # it could not be expressed either
    with pytest.raises(ValueError, match=r"img_size=\(32, 48\), which is not square"):
        va.save(model, tmp_path / "a")
    with pytest.raises(ValueError, match="layout must be hf or open_clip for a CLIP"):
        va.save(model, tmp_path / "a", layout="timm")
    assert not (tmp_path / "a").exists()
