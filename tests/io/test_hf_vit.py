# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of transformers' ViT and DINOv2, written by transformers, read by us, and the way back."""

import json
import random

import numpy as np
import pytest
import torch

import vision_accel as va
from tests import reference_libs
from vision_accel.io.tensors import read_tensors

pytestmark = pytest.mark.parity
ACTIVATIONS = """
    gelu gelu_new gelu_fast gelu_accurate gelu_pytorch_tanh gelu_python quick_gelu silu relu tanh hardswish
""".split()  # noqa: SIM905
SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def shake(model):
    """Make every parameter matter: nothing stays at zero or one."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model.eval()


def draw(seed):
    """A random configuration of ViT in transformers' words."""
    rng = random.Random(seed)
    heads = rng.choice([1, 2, 3, 4])
    image, patch = rng.choice([(32, 8), ([32, 48], [8, 8]), ([24, 40], [4, 8]), (30, 7), (32, [16, 4])])
    return {
        "hidden_size": heads * rng.choice([8, 12, 20]),
        "num_attention_heads": heads,
        "num_hidden_layers": rng.choice([0, 1, 2, 4]),
        "intermediate_size": rng.choice([32, 37, 64, 101]),
        "image_size": image,
        "patch_size": patch,
        "num_channels": rng.choice([1, 3, 5]),
        "hidden_act": rng.choice(ACTIVATIONS),
        "layer_norm_eps": rng.choice([1e-12, 1e-6, 1e-5, 1e-3]),
        "qkv_bias": rng.random() < 0.6,
        "hidden_dropout_prob": rng.choice([0.0, 0.1]),
        "attention_probs_dropout_prob": rng.choice([0.0, 0.1]),
    }


def size(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def vit(seed, kind):
    hf = reference_libs.transformers()
    config = hf.ViTConfig(**draw(seed))
    if kind == "classifier":
        config.num_labels = seed % 4 + 1
        return shake(hf.ViTForImageClassification(config))
    if kind == "pooler":
        config.pooler_output_size = 11
    return shake(hf.ViTModel(config, add_pooling_layer=kind == "pooler"))


def dino(seed, registers=False, swiglu=False, classes=0):
    hf = reference_libs.transformers()
    rng = random.Random(seed)
    options = {
        "hidden_size": 24, "num_attention_heads": rng.choice([2, 3]), "num_hidden_layers": rng.choice([1, 3]),
        "mlp_ratio": rng.choice([2, 4]), "image_size": 40, "patch_size": 8, "use_swiglu_ffn": swiglu,
        "layerscale_value": rng.choice([0.0, 0.3]), "qkv_bias": rng.random() < 0.5,
        "hidden_act": rng.choice(["gelu", "silu"]),
    }  # fmt: skip
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    if registers:
        options["num_register_tokens"] = 3
    config = getattr(hf, f"{name}Config")(**options)
    if classes:
        config.num_labels = classes
    model = getattr(hf, f"{name}ForImageClassification" if classes else f"{name}Model")(config)
    return shake(model)


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def compare(theirs, ours, x, **options):
    """Outputs and tokens of both."""
    with torch.no_grad():
        reference = theirs(x, **options)
        base = getattr(theirs, theirs.base_model_prefix, theirs)
        assert_close(ours.forward_features(x), base(x, **options).last_hidden_state)
        if "logits" in reference:
            assert_close(ours(x), reference.logits)
        elif reference.pooler_output is not None:
            assert_close(ours(x), reference.pooler_output)
        else:
            assert_close(ours(x), reference.last_hidden_state[:, 0])


def there_and_back(theirs, tmp_path, x):
    """Theirs -> disk -> ours -> disk -> theirs: same outputs on the way, same bits and config at the end."""
    theirs.save_pretrained(tmp_path / "a")
    ours = va.load(tmp_path / "a")
    assert not ours.training
    compare(theirs, ours, x)
    va.save(ours, tmp_path / "b")
    before, after = read_tensors(tmp_path / "a"), read_tensors(tmp_path / "b")
    assert before.keys() == after.keys()
    options = (
        {"add_pooling_layer": False} if type(theirs).__name__ == "ViTModel" and not theirs.pooler else {}
    )
    again, info = type(theirs).from_pretrained(tmp_path / "b", output_loading_info=True, **options)
    assert not any(info.values()), info
    with torch.no_grad():
        for p, q in zip(theirs.eval()(x).values(), again.eval()(x).values(), strict=True):
            assert_close(q, p)
    second = va.load(tmp_path / "b")
    assert second.config == ours.config
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), second.parameters(), strict=True))
    # Names of the same function, and two spellings of a square, are not told apart.
    free = {
        "_name_or_path",
        "encoder_stride",
        "hidden_act",
        "image_size",
        "patch_size",
        "transformers_version",
    }
    configs = [m.config.to_dict() for m in (theirs, again)]
    assert [(k, v) for k, v in configs[0].items() if k not in free and configs[1].get(k) != v] == []
    return ours, before, after


@pytest.mark.parametrize("kind", ["classifier", "pooler", "bare"])
@pytest.mark.parametrize("seed", range(10))
def test_vit(tmp_path, seed, kind):
    theirs = vit(seed, kind)
    x = torch.randn(2, theirs.config.num_channels, *size(theirs.config.image_size))
    _, before, after = there_and_back(theirs, tmp_path, x)
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("kind", ["Model", "ForImageClassification", "ForImageClassificationWithTeacher"])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_deit(tmp_path, kind, qkv_bias):
    hf = reference_libs.transformers()
    config = hf.DeiTConfig(**SMALL, qkv_bias=qkv_bias, layer_norm_eps=1e-6)
    if kind != "Model":
        config.num_labels = 5
    theirs = shake(getattr(hf, f"DeiT{kind}")(config))
    ours, before, after = there_and_back(theirs, tmp_path, torch.randn(2, 3, 32, 32))
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert ours.config.distilled == kind.endswith("Teacher")
    if kind != "Model":
        x = torch.randn(2, 3, 48, 64)
        compare(theirs, va.load(tmp_path / "a", img_size=(48, 64)), x, interpolate_pos_encoding=True)
        va.save(ours, tmp_path / "timm", layout="timm")
        timm = reference_libs.timm().create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        with torch.no_grad():
            assert_close(timm(x[..., :32, :32]), theirs(x[..., :32, :32]).logits)


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [False, True])
def test_dinov2(tmp_path, registers, swiglu, classes):
    theirs = dino(classes, registers, swiglu, classes)
    ours, before, after = there_and_back(theirs, tmp_path, torch.randn(2, 3, 40, 40))
    # The mask token serves pre-training; the class token of a model with registers takes in its position.
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k.rsplit(".", 1)[1] for k in changed} <= {"mask_token", "cls_token", "position_embeddings"}
    for shape in [(24, 24), (64, 48), (40, 48)]:
        compare(theirs, ours, torch.randn(2, 3, *shape))


@pytest.mark.parametrize("shape", [(24, 24), (64, 48), (32, 40)])
def test_other_image_sizes_as_interpolate_pos_encoding(tmp_path, shape):
    hf = reference_libs.transformers()
    config = hf.ViTConfig(**SMALL)
    theirs = shake(hf.ViTForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    x = torch.randn(2, 3, *shape)
    compare(theirs, va.load(tmp_path, dynamic_img_size=True), x, interpolate_pos_encoding=True)
    compare(theirs, va.load(tmp_path, img_size=shape), x, interpolate_pos_encoding=True)


def test_gradients(tmp_path):
    theirs = vit(2, "classifier")
    theirs.save_pretrained(tmp_path)
    ours = va.load(tmp_path)
    x = torch.randn(3, theirs.config.num_channels, *size(theirs.config.image_size))
    (ours(x).square().sum() + theirs(x).logits.square().sum()).backward()
    layer = theirs.vit.layers[0]
    qkv = [getattr(layer.attention, f"{n}_proj").weight.grad for n in "qkv"]
    assert_close(ours.blocks[0].attn.qkv.weight.grad, torch.cat(qkv))
    assert_close(ours.blocks[0].mlp.fc1.weight.grad, layer.mlp.fc1.weight.grad)
    assert_close(ours.pos_embed.grad, theirs.vit.embeddings.position_embeddings.grad)
    assert_close(ours.head.weight.grad, theirs.classifier.weight.grad)


def test_names_of_the_new_in_memory_form_are_read_too(tmp_path):
    from safetensors.torch import save_file

    deit = reference_libs.transformers().DeiTForImageClassificationWithTeacher
    for theirs in (vit(3, "classifier"), dino(0, swiglu=True), deit(deit.config_class(**SMALL))):
        theirs.save_pretrained(tmp_path)
        expected = va.load(tmp_path).state_dict()
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        found = va.load(tmp_path).state_dict()
        assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_pickled_and_sharded_weights(tmp_path):
    theirs = vit(4, "classifier")
    theirs.save_pretrained(tmp_path / "whole")
    expected = va.load(tmp_path / "whole").state_dict()
    weights = read_tensors(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    (tmp_path / "pickled").mkdir()
    torch.save(weights, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    for name in ("sharded", "pickled"):
        found = va.load(tmp_path / name).state_dict()
        assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_labels(tmp_path):
    hf = reference_libs.transformers()
    names = {0: "cat", 1: "dog", 2: "emu"}
    config = hf.ViTConfig(**SMALL, id2label=names, label2id={n: i for i, n in names.items()})
    hf.ViTForImageClassification(config).save_pretrained(tmp_path / "a")
    model = va.load(tmp_path / "a")
    assert model.labels == names
    va.save(model, tmp_path / "b")
    saved = hf.ViTConfig.from_pretrained(tmp_path / "b")
    assert (saved.id2label, saved.label2id) == (names, config.label2id)
    assert va.load(tmp_path / "a", num_classes=5).labels is None


def test_preprocessing(tmp_path):
    hf = reference_libs.transformers()
    hf.ViTForImageClassification(hf.ViTConfig(**SMALL)).save_pretrained(tmp_path)
    assert va.load(tmp_path).preprocess is None
    processor = hf.ViTImageProcessorPil(
        size={"height": 32, "width": 32}, resample=3, image_mean=[0.1, 0.2, 0.3]
    )
    processor.save_pretrained(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (50, 41, 3), dtype=np.uint8)
    expected = processor(picture, return_tensors="np")["pixel_values"][0]
    model = va.load(tmp_path)
    assert np.array_equal(model.preprocess(picture), expected)
    va.save(model, tmp_path / "again")
    again = hf.ViTImageProcessorPil.from_pretrained(tmp_path / "again")
    assert np.array_equal(again(picture, return_tensors="np")["pixel_values"][0], expected)
    assert va.load(tmp_path / "again").preprocess == model.preprocess
    assert va.load(tmp_path, img_size=(48, 64)).preprocess.size == (48, 64)
    file = tmp_path / "preprocessor_config.json"
    old = {k: v for k, v in json.loads(file.read_text()).items() if k != "image_processor_type"}
    file.write_text(json.dumps(old))
    assert va.load(tmp_path).preprocess == model.preprocess
    file.write_text(json.dumps(old | {"do_pad": True}))
    with pytest.raises(ValueError, match="do_pad = True is not supported"):
        va.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(tmp_path, dtype):
    theirs = vit(5, "classifier")
    theirs.save_pretrained(tmp_path / "a")
    x = torch.randn(4, theirs.config.num_channels, *size(theirs.config.image_size))
    ours = va.load(tmp_path / "a", dtype=dtype)
    assert ours.head.weight.dtype == dtype
    with torch.no_grad():
        truth = theirs.double()(x.double()).logits
        mine = ours(x).double()
        reference = theirs.to(dtype)(x.to(dtype)).logits.double()
    assert (mine - truth).abs().max() <= 2 * (reference - truth).abs().max()
    va.save(ours, tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == str(dtype)[6:]
    assert va.load(tmp_path / "b").head.weight.dtype == dtype
    assert va.load(tmp_path / "b", dtype="float64").head.weight.dtype == torch.float64
    with pytest.raises(ValueError, match="dtype must be a floating one such as 'bfloat16', got 'half float'"):
        va.load(tmp_path / "b", dtype="half float")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "prelu"}, "hidden_act 'prelu' is not supported"),
        ({"model_type": "clap"}, "model_type 'clap' is not supported; supported are vit"),
        ({"head_dim": 3}, "head_dim 3"),
        ({"num_hidden_layers": 3}, r"missing encoder\.layer\.2\.\S+ .*and 8 more"),
        ({"num_hidden_layers": 1}, r"unexpected encoder\.layer\.1\."),
        ({"qkv_bias": False}, r"unexpected .*query\.bias"),
        ({"hidden_size": 32}, r"of another shape cls_token \[1, 1, 24\], expected \[1, 1, 32\]"),
        ({"id2label": {"0": "cat"}}, "id2label names 1 classes, the classifier has 2"),
        ({"hidden_size": "wide"}, "hidden_size must be a whole number of at least 1, got 'wide'"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number of at least 1, got 0"),
        ({"hidden_act": ["gelu"]}, "hidden_act .'gelu'. is not supported"),
        ({"layer_norm_eps": "small"}, "norm_eps must be a number, got 'small'"),
        ({"qkv_bias": "yes"}, "qkv_bias must be true or false, got 'yes'"),
        ({"id2label": {"cat": "0"}}, "id2label must map class numbers to names, got the key 'cat'"),
        ({"image_size": [1, 2, 3]}, "img_size must be"),
    ],
)  # fmt: skip
def test_config_that_does_not_fit(tmp_path, change, message):
    hf = reference_libs.transformers()
    config = hf.ViTConfig(**SMALL)
    hf.ViTForImageClassification(config).save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        va.load(tmp_path / "hf")
    assert str(tmp_path) in str(error.value)
