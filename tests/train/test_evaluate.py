# SPDX-License-Identifier: Apache-2.0
import dataclasses
import shutil

import pytest
import torch

import vision_accel as va
from vision_accel.data.folder import ImageFolder
from vision_accel.data.preprocess import Preprocess
from vision_accel.data.source import DataError
from vision_accel.train import evaluate

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture
def model():
    model = va.create_model("vit_tiny_patch16_224", num_classes=3, **TINY)
    torch.nn.init.normal_(model.head.weight)
    model.preprocess = Preprocess(size=(32, 32))
    return model.train()


def test_equals_one_image_at_a_time(model, image_root):
    folder = ImageFolder(image_root / "val")
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor(model.preprocess(folder.path(i)))[None]) for i in range(18)])
    model.train()
    labels = torch.tensor(folder.labels)
    result = evaluate(model, image_root / "val", batch_size=5, workers=2)
    assert result.top1 == float((logits.argmax(1) == labels).double().mean())
    assert result.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert (result.top5, result.images, result.bad) == (1.0, 18, [])
    assert model.training


def test_dali_gives_the_same(model, image_root):
    pytest.importorskip("nvidia.dali", reason="DALI is for Linux on x86-64 and SBSA")
    plain, dali = (evaluate(model, image_root / "val", loader=which) for which in ("builtin", "dali"))
    assert dataclasses.replace(dali, images_per_s=plain.images_per_s) == plain


def test_classes_are_matched_by_name(model, image_root):
    plain = evaluate(model, image_root / "val")
    model.labels = {0: "red", 1: "green", 2: "blue"}
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight.flip(0).clone())
    assert evaluate(model, image_root / "val").loss == pytest.approx(plain.loss, rel=1e-6)


def test_top5(image_root):
    model = va.create_model("vit_tiny_patch16_224", num_classes=8, **TINY)
    model.preprocess, model.labels = (
        Preprocess(size=(32, 32)),
        dict(enumerate("abc")) | {3: "red", 4: "green", 5: "blue"},
    )
    torch.nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([9.0, 8, 7, 6, 5, 4, 0, 0]))
    result = evaluate(model, image_root / "val")
    assert result.top1 == 0.0
    assert result.top5 == pytest.approx(2 / 3)  # red and green are the 4th and 5th


def test_unreadable_images_are_reported(model, image_root, tmp_path):
    shutil.copytree(image_root / "val", tmp_path / "val")
    (tmp_path / "val/red/1.png").write_bytes(b"broken")
    result = evaluate(model, tmp_path / "val", max_bad_fraction=0.1)
    assert (result.images, [b.file for b in result.bad]) == (17, ["red/1.png"])
    with pytest.raises(
        DataError, match=r"1 of 18 images cannot be read, more than the allowed 5.00%; first: red/1"
    ):
        evaluate(model, tmp_path / "val")


def test_folder_that_does_not_fit_the_model(model, image_root):
    model.reset_classifier(5)
    with pytest.raises(DataError, match="3 classes, but the model has 5"):
        evaluate(model, image_root / "val")


def test_model_without_a_recipe(model, image_root):
    model.preprocess = None
    with pytest.raises(DataError, match="the model does not say how images are prepared"):
        evaluate(model, image_root / "val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float32"}, "precision: must be one of fp32, bf16, fp16, got 'float32'"),
        ({"loader": "DALI"}, "loader: must be one of builtin, dali, got 'DALI'"),
        ({"batch_size": 0}, "batch_size: must be at least 1, got 0"),
        ({"workers": -1}, "workers: must be at least 0, got -1"),
    ],
)
def test_bad_options(model, image_root, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, image_root / "val", **options)
