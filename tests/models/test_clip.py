# SPDX-License-Identifier: Apache-2.0
"""CLIP by itself; tests/io compares it with transformers and open_clip."""

import pytest
import torch

import vision_accel as va
from tests import reference_libs
from vision_accel.models import CLIP, CLIPConfig

POOLS = ["argmax", "eos", "first", "last"]


def small(**overrides):
    return va.create_model("test_clip", **overrides).eval()


def texts(count=6, length=16, vocab=512):
    """Token ids with an end token (the largest id) somewhere, and zeros behind it."""
    tokens = torch.randint(1, vocab - 1, (count, length))
    for i in range(count):
        place = int(torch.randint(1, length - 4, ()))
        tokens[i, place] = vocab - 1
        tokens[i, place + 1 :] = 0
    return tokens


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pool", POOLS)
def test_pooled_row_is_the_row_of_all_tokens(pool, causal):
    model = small(**{"text.pool": pool, "text.causal": causal, "text.eos_id": 511}).text
    tokens = texts()
    with torch.no_grad():
        every = model.forward_features(tokens)
        expected = every[torch.arange(6), model.pool_index(tokens)]
        assert torch.allclose(model(tokens), expected, rtol=0, atol=1e-6)
        assert torch.equal(model(tokens.int()), model(tokens))


def test_same_bits_alone_and_in_any_batch():
    model = small()
    images, tokens = torch.randn(7, 3, 32, 32), texts(7)
    with torch.inference_mode():
        image, text = model.encode_image(images), model.encode_text(tokens)
        for i in range(7):
            assert torch.equal(model.encode_image(images[i : i + 1])[0], image[i])
            assert torch.equal(model.encode_text(tokens[i : i + 1])[0], text[i])
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            assert torch.equal(model.encode_text(tokens), text)
            assert torch.equal(model.encode_image(images), image)
        finally:
            torch.set_num_threads(before)


def test_what_comes_after_the_end_does_not_count():
    model = small()
    tokens = texts()
    other = torch.where(tokens == 0, 300, tokens)
    with torch.no_grad():
        assert torch.equal(model.encode_text(tokens), model.encode_text(other))
        wide = torch.nn.functional.pad(tokens[:, :13], (0, 3))
        assert torch.equal(model.encode_text(tokens[:, :13]), model.encode_text(wide))


def test_forward():
    model = small()
    images, tokens = torch.randn(2, 3, 32, 32), texts(3)
    with torch.no_grad():
        image, text, scale = model(images, tokens)
        assert image.shape == (2, 64)
        assert torch.allclose(text.norm(dim=-1), torch.ones(3))
        assert scale.item() == pytest.approx(1 / 0.07)
        assert torch.equal(model(images)[0], image)
        assert model(text=tokens)[0] is None
        logits, transposed = model.get_logits(images, tokens)
        assert torch.equal(logits, transposed.T)
        assert torch.allclose(logits, scale * image @ text.T)
        bias = small(init_logit_bias=-3.0)
        assert bias(images, tokens)[3].item() == -3
        assert (bias.logits(image, text) - bias.logits(image, -text)).std() > 0
        # No texts and no images are fine.
        assert model.encode_text(tokens[:0]).shape == (0, 64)
        assert model.encode_image(images[:0]).shape == (0, 64)


@pytest.mark.parity
def test_gradients_are_transformers(tmp_path):
    hf = reference_libs.transformers()
    model = small().train()
    va.save(model, tmp_path)
    theirs = hf.CLIPModel.from_pretrained(tmp_path).train()
    images, tokens = torch.randn(5, 3, 32, 32), texts(5)
    loss = theirs(input_ids=tokens, pixel_values=images, return_loss=True).loss
    loss.backward()
    logits, _ = model.get_logits(images, tokens)
    labels = torch.arange(5)
    cross_entropy = torch.nn.functional.cross_entropy
    ours = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    assert torch.allclose(ours, loss, rtol=1e-5)
    ours.backward()
    for name, expected in (
        ("visual.patch_embed.proj.weight", theirs.vision_model.embeddings.patch_embedding.weight),
        ("visual.blocks.1.mlp.fc1.weight", theirs.vision_model.encoder.layers[1].mlp.fc1.weight),
        ("text.token_embedding.weight", theirs.text_model.embeddings.token_embedding.weight),
        ("text.blocks.0.attn.proj.weight", theirs.text_model.encoder.layers[0].self_attn.out_proj.weight),
        ("text.blocks.1.norm1.weight", theirs.text_model.encoder.layers[1].layer_norm1.weight),
        ("text_projection.weight", theirs.text_projection.weight),
        ("logit_scale", theirs.logit_scale),
    ):
        a, b = model.get_parameter(name).grad, expected.grad
        assert (a - b).abs().max() <= 1e-4 * b.abs().max(), name


def test_checkpointed_activations_give_the_same_gradients():
    model = small().train()
    images, tokens = torch.randn(2, 3, 32, 32), texts(2)

    def gradients():
        model.zero_grad()
        model.get_logits(images, tokens)[0].square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.set_grad_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


def test_locked_towers():
    model = small()
    model.lock_image_tower()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {
        "text", "text_projection", "logit_scale",
    }  # fmt: skip
    model = small()
    model.lock_image_tower(unlocked_groups=2)
    free = {n for n, p in model.named_parameters() if p.requires_grad and n.startswith("visual")}
    assert "visual.norm.weight" in free
    assert "visual_projection.weight" in free
    assert all(n.startswith(("visual.blocks.1.", "visual.norm.", "visual_projection.")) for n in free)
    model = small()
    model.lock_text_tower(unlocked_layers=1)
    free = {n for n, p in model.named_parameters() if p.requires_grad and n.startswith("text")}
    assert free == {"text_projection.weight"}


def test_clamp():
    model = small()
    with torch.no_grad():
        model.logit_scale.fill_(9)
        model.clamp_logit_scale()
        assert model.logit_scale.exp().item() == pytest.approx(100)
        model.logit_scale.fill_(-2)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == 0


def test_names_and_overrides():
    names = va.list_models()
    assert {"ViT-B-32", "ViT-L-14-336-quickgelu", "clip_vit_base_patch32", "siglip_base_patch16_224"} <= {
        *names
    }
    assert CLIPConfig.named("clip_vit_base_patch32").text.act_layer == "quick_gelu"
    model = small(vision={"depth": 1}, **{"text.depth": 3}, img_size=(16, 24), context_length=9)
    assert len(model.visual.blocks) == 1
    assert len(model.text.blocks) == 3
    assert model.preprocess.size == (16, 24)
    assert model.text.pos_embed.shape == (1, 9, 48)
    assert isinstance(model, CLIP)
    for wrong, message in (
        ({"vision": {"dept": 1}}, "did you mean 'depth'"),
        ({"text": {"widht": 1}}, "CLIP's text tower has no option 'widht'"),
        ({"embeddim": 3}, "did you mean 'embed_dim'"),
    ):
        with pytest.raises(TypeError, match=message):
            small(**wrong)
    for wrong, message in (
        ({"text": {"pool": "mean"}}, "pool must be one of argmax, eos, first, last, got 'mean'"),
        ({"text": {"num_heads": 5}}, "num_heads must be a divisor of 48, got 5"),
        ({"vision_proj": "none", "embed_dim": 7}, "embed_dim must be the tower's width 64, got 7"),
        ({"vision": {"num_classes": 3}}, "num_classes=0"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**wrong)
    with pytest.raises(ValueError, match="unknown model 'ViT-B-33'; did you mean"):
        va.create_model("ViT-B-33")


def test_bad_input():
    model = small()
    with pytest.raises(ValueError, match=r"tokens must be \[B, N\] with N from 1 to 16, got \[2, 17\]"):
        model.encode_text(torch.zeros(2, 17, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \[16\]"):
        model.encode_text(torch.zeros(16, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"tokens must be int32 or int64, got torch.float32"):
        model.encode_text(torch.zeros(2, 16))
    with pytest.raises(ValueError, match="images must be"):
        model.encode_image(torch.zeros(1, 3, 31, 32))
    with pytest.raises(IndexError):
        model.encode_text(torch.full((1, 4), 512))


def test_bfloat16_and_compile():
    model = small()
    images, tokens = torch.randn(2, 3, 32, 32), texts(2)
    with torch.inference_mode():
        expected = model.get_logits(images, tokens)[0]
        low = small().to(torch.bfloat16)
        low.load_state_dict(model.state_dict())
        got = low.get_logits(images.bfloat16(), tokens)[0].float()
        assert (got - expected).abs().max() < 0.05 * expected.abs().max()
    exported = torch.export.export(model, (images, tokens)).module()
    with torch.no_grad():
        for a, b in zip(exported(images, tokens), model(images, tokens), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
