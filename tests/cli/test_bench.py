# SPDX-License-Identifier: Apache-2.0
import json

import pytest

import vision_accel as va


def test_vit(run, fails, tmp_path):
    va.create_model("test_vit").save_pretrained(tmp_path)
    code, out, _ = run("bench", tmp_path, "--batch-size", "1,3", "--seconds", 0)
    assert code == 0
    header, *rows = out.splitlines()
    assert header.split()[:2] == ["model", "infer_samples_per_sec"]
    assert len(rows) == 2
    records = json.loads(run("bench", "vit_tiny_patch16_224", "--batch-size", 1, "--seconds", 0, "--json")[1])
    # timm's results/benchmark-infer table says 5.72 M parameters and 1.26 GMACs.
    assert records[0]["param_count"] == pytest.approx(5.72, abs=0.01)
    assert records[0]["infer_gmacs"] == pytest.approx(1.26, abs=0.01)
    assert "did you mean" in fails("bench", "vit_tiny_patch16_244")
    assert "vit_tiny_patch16_224" in fails("bench", "vit_tiny_patch16_244")


def test_clip_and_autoencoder(run, fails, tmp_path):
    _, out, _ = run("bench", "test_clip", "--batch-size", 2, "--seconds", 0)
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["test_clip", "image"],
        ["test_clip", "text"],
    ]
    _, out, _ = run(
        "bench", "autoencoder_kl_sd", "--img-size", 16, "--batch-size", 1, "--seconds", 0, "--json"
    )
    assert [(r["model"].split()[1], r["infer_img_size"]) for r in json.loads(out)] == [
        ("encode", 16),
        ("decode", 16),
    ]
    tall = va.create_model("autoencoder_kl_sd", block_out_channels=(32, 32), sample_size=(16, 24))
    tall.save_pretrained(tmp_path)
    _, out, _ = run("bench", tmp_path, "--batch-size", 1, "--seconds", 0, "--json")
    assert [r["infer_img_size"] for r in json.loads(out)] == ["16x24", "16x24"]
    assert "--img-size" in fails("bench", "test_clip", "--img-size", 64)
