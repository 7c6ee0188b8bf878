# SPDX-License-Identifier: Apache-2.0
"""Zero-shot labels, similarities, text embeddings and search, in Python and on the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vision_accel as va
from vision_accel.cli import main
from vision_accel.data.tokenizer import Tokenizer
from vision_accel.models.zero_shot import SIMPLE_TEMPLATES, ZeroShot

LABELS = ["red", "green", "blue sky"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a photo of a red green blue sky"] * 3, 560, 16)
    model = va.create_model("test_clip", **{"text.vocab_size": tokenizer.vocab_size}).eval()
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label in ("blue_sky", "green", "red"):
        (root / label).mkdir()
        for i in range(3):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def saved(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    va.save(clip, path)
    return str(path)


def width_of(picture):
    with Image.open(picture) as image:
        return image.width


def test_scores_are_the_models(clip, folder):
    results = va.zero_shot(clip, folder, LABELS, top_k=2)
    assert len(results) == 9
    files = sorted(folder.rglob("*.png"))
    images = torch.stack([torch.from_numpy(clip.preprocess(f)) for f in files])
    tokens = clip.tokenizer([f"a photo of a {label}." for label in LABELS])
    with torch.no_grad():
        expected = clip.get_logits(images, tokens)[0].softmax(-1)
    for result, row in zip(results, expected, strict=True):
        assert [p.label for p in result.predictions] == [LABELS[i] for i in row.topk(2).indices.tolist()]
        assert result.score == pytest.approx(row.max().item(), rel=1e-4)
    again = va.zero_shot(clip, files, LABELS, top_k=2, batch_size=2)
    assert [r.predictions for r in again] == [r.predictions for r in results]


def test_siglip_scores_each_label_by_itself(clip, folder):
    model = va.create_model("test_clip", init_logit_bias=-2.0, **{"text.vocab_size": 1000}).eval()
    model.tokenizer = clip.tokenizer
    result = va.zero_shot(model, folder / "red/0.png", LABELS)[0]
    tokens = model.tokenizer([f"a photo of a {label}." for label in LABELS])
    with torch.no_grad():
        image = torch.from_numpy(model.preprocess(folder / "red/0.png"))[None]
        expected = model.get_logits(image, tokens)[0].sigmoid()[0]
    assert {p.label: p.score for p in result.predictions} == pytest.approx(
        dict(zip(LABELS, expected.tolist(), strict=True)), rel=1e-4
    )


def test_templates_are_averaged(clip):
    many = ZeroShot(clip, LABELS, SIMPLE_TEMPLATES)
    with torch.no_grad():
        for i, label in enumerate(LABELS):
            texts = clip.tokenizer([t.format(label) for t in SIMPLE_TEMPLATES])
            mean = clip.encode_text(texts, normalize=True).mean(0)
            assert torch.allclose(many.weight[i], mean / mean.norm(), atol=1e-6)


def test_classifier_is_kept_until_the_weights_change(clip, folder, monkeypatch):
    model = va.create_model("test_clip", **{"text.vocab_size": 1000}).eval()
    model.tokenizer = clip.tokenizer
    calls = []
    encode = type(model).encode_text
    monkeypatch.setattr(type(model), "encode_text", lambda *a, **k: calls.append(1) or encode(*a, **k))
    image = folder / "red/0.png"
    first = va.zero_shot(model, image, LABELS)[0].predictions
    assert va.zero_shot(model, image, LABELS)[0].predictions == first
    assert len(calls) == 1
    va.zero_shot(model, image, LABELS[:2])
    assert len(calls) == 2
    with torch.no_grad():
        model.text_projection.weight.mul_(-1)
    assert va.zero_shot(model, image, LABELS[:2])[0].predictions != first
    assert len(calls) == 3


def test_similarity_and_embeddings(clip, folder):
    texts = ["a red", "green", "", "a much longer text about a blue sky and red and green things " * 4]
    cosine = va.similarity(clip, folder, texts)
    a, b = va.embed(clip, folder, normalize=True), va.embed_text(clip, texts)
    assert a.shape == (9, 64)
    assert torch.allclose(cosine, a @ b.T, atol=1e-6)
    logits = va.similarity(clip, folder, texts, measure="logits")
    assert torch.allclose(logits, cosine / 0.07, atol=1e-4)
    assert torch.allclose(
        va.similarity(clip, folder, texts, measure="softmax"), logits.softmax(-1), atol=1e-5
    )
    assert torch.equal(va.embed_text(clip, texts, batch_size=1), b)
    assert torch.equal(va.embed_text(clip, texts[1])[0], b[1])
    assert va.embed_text(clip, texts, normalize=False).norm(dim=-1).std() > 0
    assert va.embed(clip, folder, "token").shape == (9, 64)
    assert not clip.training


@pytest.mark.parametrize("ending", ["npz", "npy", "safetensors"])
def test_search(clip, folder, saved, tmp_path, capsys, ending):
    index = tmp_path / f"index.{ending}"
    assert main(["embed", saved, str(folder), "--output", str(index)]) == 0
    files = sorted(map(str, folder.rglob("*.png")))
    capsys.readouterr()
    assert main(["search", saved, str(index), files[4], "--image", "--top-k", "3", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert hits[0]["source"] == files[4]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    cosine = va.similarity(clip, files, "a red")[:, 0]
    found = va.search(clip, index, "a red", 4)[0]
    assert [h.source for h in found] == [files[i] for i in cosine.topk(4).indices.tolist()]
    assert len(va.search(clip, va.infer.Index.load(index), ["red", "blue"], 100)[1]) == 9
    grid = tmp_path / "grid.png"
    assert main(["search", saved, str(index), "blue sky", "--grid", str(grid)]) == 0
    assert width_of(grid) > 400


def test_bad_input(clip, folder, tmp_path):
    for labels, message in (
        ([], "labels: at least one is needed"),
        (["a", "b", "a"], "labels: 'a' given more than once"),
        (["a", " "], "labels: must be texts that are not empty"),
    ):
        with pytest.raises(ValueError, match=message):
            va.zero_shot(clip, folder, labels)
    with pytest.raises(TypeError, match="expected a list of names"):
        va.zero_shot(clip, folder, "cat")
    for template in ("a photo", "{} {x}", "{", ()):
        with pytest.raises(ValueError, match="templates:"):
            va.zero_shot(clip, folder, LABELS, template)
    with pytest.raises(ValueError, match="measure: must be one of"):
        va.similarity(clip, folder, "a", measure="l2")
    with pytest.raises(ValueError, match="texts: at least one"):
        va.similarity(clip, folder, [])
    with pytest.raises(TypeError, match="expected a CLIP, got ViT"):
        va.zero_shot(va.create_model("test_vit"), folder, LABELS)
    (tmp_path / "x.npz").write_bytes(b"PK no")
    with pytest.raises(ValueError, match="not an index"):
        va.search(clip, tmp_path / "x.npz", "a")
    with pytest.raises(FileNotFoundError, match="no such index"):
        va.search(clip, tmp_path / "y.npz", "a")
    index = va.infer.Index(torch.randn(2, 5), ["a", "b"])
    with pytest.raises(ValueError, match="they come from different models"):
        va.search(clip, index, "a")


def test_commands(folder, saved, tmp_path, capsys):
    images = str(folder)
    grid = tmp_path / "grid.png"
    assert main(["zero-shot", saved, images, "--labels", *LABELS, "--json", "--grid", str(grid)]) == 0
    records = json.loads(capsys.readouterr().out)
    assert len(records) == 9
    assert {p["label"] for p in records[0]["predictions"]} == {*LABELS}
    assert width_of(grid) > 400
    names = tmp_path / "labels.txt"
    names.write_text("cat\n\ndog\n")
    assert main(["zero-shot", saved, images, "--labels-file", str(names)]) == 0
    assert "cat" in capsys.readouterr().out
    assert main(["zero-shot", saved, images]) == 2
    assert "no labels given" in capsys.readouterr().err

    assert main(["similarity", saved, images, "--texts", "a", "b c", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert np.array(table["scores"]).shape == (9, 2)
    grid.unlink()
    assert main(["similarity", saved, images, "--texts", "a", "b c", "--grid", str(grid)]) == 0
    assert width_of(grid) > 400
    assert "[2] b c" in capsys.readouterr().out

    picture = tmp_path / "confusion.png"
    assert main(["eval", saved, images, "--workers", "0", "--confusion", str(picture), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 9
    assert result["top5"] == 1
    assert width_of(picture) > 300
    lines = tmp_path / "texts.txt"
    lines.write_text("a red\na green\n")
    out = tmp_path / "t.npy"
    assert main(["embed", saved, "--texts-file", str(lines), "--output", str(out)]) == 0
    assert np.load(out).shape == (2, 64)
    assert out.with_suffix(".txt").read_text().splitlines() == ["a red", "a green"]
