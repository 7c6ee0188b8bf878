# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

import vision_accel as va
from vision_accel.data.preprocess import Preprocess

LABELS = {0: "zero", 1: "one", 2: "two", 3: "three"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    small = {"patch_size": 8, "img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = va.create_model("vit_tiny_patch16_224", num_classes=4, **small).eval()
    model.preprocess = Preprocess(size=(32, 32))
    model.labels = LABELS
    with torch.no_grad():
        model.head.weight.normal_()
    return model


@pytest.fixture
def by_hand(model, folder):
    """Path -> logits [4] and pooled features [48], each image alone."""
    logits, features = {}, {}
    with torch.no_grad():
        for path in (p for p in folder.rglob("*") if p.suffix in {".jpg", ".png"} and p.name[0] != "."):
            x = torch.from_numpy(model.preprocess(path))[None]
            logits[str(path)], features[str(path)] = model(x)[0], model(x, pre_logits=True)[0]
    return logits, features


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scores_are_those_of_the_model(model, folder, by_hand, batch_size):
    results = va.classify(model, folder, top_k=3, batch_size=batch_size)
    assert {r.source for r in results} == set(by_hand[0])
    for result in results:
        values, classes = by_hand[0][result.source].softmax(-1).topk(3)
        assert [p.label for p in result.predictions] == [LABELS[c] for c in classes.tolist()]
        # Bit-identical: an image's result does not depend on its batch.
        assert [p.score for p in result.predictions] == values.tolist()
        assert (result.label, result.score) == tuple(result.predictions[0])
        assert result.error is None


def test_functions(model, folder, by_hand):
    (path,) = [p for p in by_hand[0] if p.endswith("1.png")]
    logits = by_hand[0][path]
    expected = {"softmax": logits.softmax(-1), "sigmoid": logits.sigmoid(), "none": logits}
    for function, scores in expected.items():
        (result,) = va.classify(model, path, top_k=99, function=function)
        assert [p.score for p in result.predictions] == sorted(scores.tolist(), reverse=True)


def test_unnamed_classes_have_numbers(model, folder):
    model.labels = None
    try:
        (result,) = va.classify(model, folder / "1.png", top_k=1)
    finally:
        model.labels = LABELS
    assert result.label.startswith("class ")


def test_bad_image_loses_nothing_else(model, folder):
    (folder / "3.png").write_bytes(b"junk")
    good = {r.source: r.predictions for r in va.classify(model, folder, on_error="skip", batch_size=3)}
    bad = good.pop(str(folder / "3.png"))
    assert bad == []
    assert len(good) == 7
    for source, predictions in good.items():
        assert va.classify(model, source)[0].predictions == predictions
    (result,) = va.classify(model, folder / "3.png", on_error="skip")
    assert "3.png" in result.error
    assert (result.label, math.isnan(result.score)) == ("", True)
    with pytest.raises(ValueError, match=r"3\.png"):
        va.classify(model, folder)


def test_mode_is_restored_and_dropout_is_off(model, folder):
    model.train()
    model.head_drop.p = 0.9
    try:
        first, second = (va.classify(model, folder) for _ in range(2))
        assert model.training
    finally:
        model.head_drop.p = 0.0
        model.eval()
    assert first == second


def test_low_precision(model, folder):
    exact = va.classify(model, folder, 4, function="none")
    try:
        low = va.classify(model.to(torch.bfloat16), folder, 4, function="none")
    finally:
        model.float()
    for a, b in zip(exact, low, strict=True):
        scores = dict(b.predictions)
        for label, score in a.predictions:
            assert scores[label] == pytest.approx(score, abs=0.1 + 0.05 * abs(score))


def test_options_are_checked(model, folder):
    for options, message in [
        ({"top_k": 0}, "top_k: must be at least 1, got 0"),
        ({"function": "argmax"}, "function: must be 'softmax', 'sigmoid' or 'none', got 'argmax'"),
    ]:
        with pytest.raises(ValueError, match=message):
            va.classify(model, folder, **options)


def test_model_that_cannot_classify(model, folder):
    backbone = va.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    backbone.preprocess = model.preprocess
    with pytest.raises(ValueError, match="no classifier"):
        va.classify(backbone, folder)
    unprepared = va.create_model("vit_tiny_patch16_224", depth=1)
    unprepared.preprocess = None
    with pytest.raises(ValueError, match=r"set model\.preprocess = va\.data\.Preprocess"):
        va.classify(unprepared, folder)


def test_tensors_of_different_shapes(model):
    with pytest.raises(ValueError, match="must have one shape"):
        va.classify(model, [torch.zeros(3, 32, 32), torch.zeros(3, 16, 32)])


# Features.


def test_features_are_those_of_the_model(model, folder, by_hand):
    features = va.embed(model, folder, batch_size=3)
    order = [r.source for r in va.classify(model, folder)]
    assert torch.equal(features, torch.stack([by_hand[1][source] for source in order]))


def test_poolings(model, folder):
    x = torch.stack([torch.from_numpy(model.preprocess(folder / n)) for n in ("0.jpg", "1.png")])
    with torch.no_grad():
        tokens = model.forward_features(x)
    images = [folder / "0.jpg", folder / "1.png"]
    assert torch.equal(va.embed(model, images, "token"), tokens[:, 0])
    assert torch.equal(va.embed(model, images, "avg"), tokens[:, 1:].mean(1))
    assert torch.equal(va.embed(model, images, "none"), tokens)
    unit = va.embed(model, images, normalize=True)
    assert torch.allclose(unit.norm(dim=-1), torch.ones(2))
    with pytest.raises(ValueError, match="pooling: must be 'model', 'token', 'avg' or 'none', got 'max'"):
        va.embed(model, images, "max")


def test_token_of_a_model_without_class_token(folder):
    model = va.create_model("vit_base_patch16_gap_224", depth=1)
    with pytest.raises(ValueError, match="'token' needs a model with a class token"):
        va.embed(model, folder, "token")


def test_bad_image_is_a_row_of_nan(model, folder):
    whole = va.embed(model, folder)
    (folder / "1.png").write_bytes(b"junk")
    with pytest.warns(UserWarning, match=r"1 of 8 images could not be read; first: .*1\.png"):
        features = va.embed(model, folder, on_error="skip")
    assert features[1].isnan().all()
    rest = [i for i in range(8) if i != 1]
    assert torch.equal(features[rest], whole[rest])
    with pytest.warns(UserWarning, match="1 of 1"):
        assert va.embed(model, folder / "1.png", on_error="skip").isnan().all()
    with pytest.raises(ValueError, match=r"1\.png"):
        va.embed(model, folder)


def test_no_images(model):
    assert va.classify(model, []) == []
    assert va.embed(model, []).shape == (0, 48)
