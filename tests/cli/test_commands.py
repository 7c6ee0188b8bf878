# SPDX-License-Identifier: Apache-2.0
"""Every command on small data, and what each says to bad input: one line, exit code 2."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vision_accel as va
from vision_accel.cli import COMMANDS, main
from vision_accel.data.preprocess import Preprocess

SMALL = {"patch_size": 8, "img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    model = va.create_model("vit_tiny_patch16_224", num_classes=3, **SMALL).eval()
    model.preprocess = Preprocess(size=(32, 32))
    model.labels = {0: "blue", 1: "green", 2: "red"}
    with torch.no_grad():
        model.head.weight.normal_()
    directory = tmp_path_factory.mktemp("models") / "small"
    va.save(model, directory, layout="hf")
    return directory


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """train/ and val/ with images of three colours."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for channel, name in enumerate(("red", "green", "blue")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (40, 40, 3), np.uint8)
                pixels[..., channel] += 160
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


# The frame.


def test_start_needs_no_torch():
    """Nor does the help of any command but train, whose options belong to the training loop."""
    code = """if True:
        import contextlib, sys
        from vision_accel.cli import COMMANDS, main
        assert main(["--help"]) == main(["info"]) == 0
        for command in [*(set(COMMANDS) - {"train"}), "data pack", "bench data"]:
            with contextlib.suppress(SystemExit):
                main([*command.split(), "--help"])
            assert "torch" not in sys.modules, command
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout


def test_python_m():
    done = subprocess.run(
        [sys.executable, "-m", "vision_accel", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == va.__version__


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command, run, capsys):
    argv = [command, *{"train": ["vit"], "data": ["pack"]}.get(command, []), "--help"]
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code in {0, None}
    assert f"usage: vision-accel {command}" in capsys.readouterr().out


def test_info(run):
    code, out, _ = run("info")
    assert code == 0
    assert va.info()["isa"] in out
    code, out, _ = run("info", "--json")
    assert (code, json.loads(out)["version"]) == (0, va.__version__)


def test_unknown_words_suggest_the_right_ones(fails):
    assert "unknown command 'clasify'; did you mean 'classify'?" in fails("clasify")
    assert "unknown option '--jsn'; did you mean '--json'?" in fails("info", "--jsn")
    assert "unknown option '--lr'; did you mean '--optim.lr'?" in fails("train", "vit", "--lr", "1")
    assert "unknown task 'vt'; did you mean 'vit'?" in fails("train", "vt")
    assert "unexpected argument 'x'" in fails("info", "x")


def test_no_command_is_a_usage_error(run):
    assert run()[0] == 2


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(OSError, match="none"):
        main(["classify", "--debug", "no_model", str(tmp_path / "none.jpg")])


def test_interrupt_is_130(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vision_accel.cli.info.parse", interrupt)
    code, _, err = run("info")
    assert (code, err.strip()) == (130, "vision-accel: interrupted")


def test_own_fault_is_1(run, monkeypatch):
    def fault(*_):
        raise AssertionError("this cannot be")

    monkeypatch.setattr("vision_accel.cli.info.parse", fault)
    code, _, err = run("info")
    assert code == 1
    assert "internal error: AssertionError: this cannot be (--debug shows the traceback)" in err


def test_missing_package_is_named(fails, monkeypatch, tmp_path):
    def missing(*_):
        raise ModuleNotFoundError("No module named 'yaml'", name="yaml")

    monkeypatch.setattr("vision_accel.cli.info.parse", missing)
    assert "needs yaml: pip install 'vision-accel[train]'" in fails("info")
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert "needs skimage: pip install scikit-image" in fails("demo", "autoencoder-kl", "--output", tmp_path)


def test_reader_that_goes_away(model_dir, classes):
    """`vision-accel classify ... | head -1` ends quietly."""
    command = [sys.executable, "-m", "vision_accel", "classify", model_dir, classes / "val"]
    process = subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    process.stdout.close()
    _, err = process.communicate(timeout=120)
    assert err == b""


# Configuration files.


def test_config_file_and_flags(run, tmp_path, model_dir, classes):
    config = tmp_path / "c.yaml"
    config.write_text("top_k: 2\nbatch-size: 4\nfunction: none\njson: true\n")
    code, out, _ = run("classify", model_dir, classes / "val", "--config", config)
    assert code == 0
    predictions = json.loads(out)[0]["predictions"]
    assert len(predictions) == 2
    code, out, _ = run("classify", model_dir, classes / "val", f"--config={config}", "--top-k", 1)
    assert len(json.loads(out)[0]["predictions"]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk: 2", "topk: unknown option; did you mean 'top_k'?"),
        ("top_k: many", "top_k: must be a whole number, got 'many'"),
        ("function: argmax", "function: must be 'softmax' or 'sigmoid' or 'none', got 'argmax'"),
        ("[1, 2]", "configuration: must be a group of options, got [1, 2]"),
        ("a: [", "not a YAML file"),
        ("!!python/object/apply:os.system [exit 3]", "not a YAML file"),
    ],
)
def test_bad_config_file(fails, tmp_path, model_dir, classes, text, message):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    err = fails("classify", model_dir, classes / "val", "--config", config)
    assert message in err
    assert "c.yaml" in err


def test_bad_config_path(fails, tmp_path):
    assert "none.yaml" in fails("info", "--config", tmp_path / "none.yaml")
    assert "--config needs a YAML file" in fails("info", "--config")


def test_bad_flag_values(fails, model_dir, classes):
    assert "abc" in fails("classify", model_dir, classes, "--top-k", "abc")
    assert "top_k: must be at least 1" in fails("classify", model_dir, classes, "--top-k", 0)
    assert "batch_size: must be at least 1" in fails("classify", model_dir, classes, "--batch-size", 0)
    assert "device: cuda:77 is not there" in fails("classify", model_dir, classes, "--device", "cuda:77")
    assert "no such device: 'tpu'" in fails("eval", model_dir, classes / "val", "--device", "tpu")
    assert "--dtype" in fails("bench", "vit_tiny_patch16_224", "--dtype", "fp8")
    assert "--batch-size: expected positive numbers" in fails(
        "bench", "vit_tiny_patch16_224", "--batch-size", "1,x"
    )
    assert "MODEL" in fails("classify")


# classify.


def test_classify_table(run, model_dir, classes):
    code, out, err = run("classify", model_dir, classes / "val", "--top-k", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 9
    expected = va.classify(va.load(model_dir), classes / "val", top_k=2)
    for line, result in zip(lines, expected, strict=True):
        assert result.source[-12:] in line
        for label, score in result.predictions:
            assert f"{label} {100 * score:.1f}%" in line


def test_classify_json(run, model_dir, classes):
    code, out, _ = run("classify", model_dir, classes / "val", "--json", "--batch-size", 2)
    records = json.loads(out)
    expected = va.classify(va.load(model_dir), classes / "val")
    assert code == 0
    assert [r["source"] for r in records] == [r.source for r in expected]
    assert [[tuple(p.values()) for p in r["predictions"]] for r in records] == [
        r.predictions for r in expected
    ]


def test_classify_bad_image_is_3(run, model_dir, classes, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff junk")
    report, grid = tmp_path / "report.html", tmp_path / "grid.png"
    code, out, err = run(
        "classify", model_dir, tmp_path / "bad.jpg", classes / "val/red", "--html", report, "--grid", grid
    )
    assert code == 3
    assert len(out.splitlines()) == 3
    assert err.count("\n") == 1
    assert "bad.jpg" in err
    assert "4 images, 1 could not be read" in report.read_text()
    with Image.open(grid) as picture:
        picture.load()
        assert picture.format == "PNG"


def test_classify_bad_input(fails, model_dir, classes, tmp_path):
    (tmp_path / "empty").mkdir()
    image = classes / "val/red/0.png"
    assert "no images given" in fails("classify", model_dir)
    assert "none.jpg: No such file or directory" in fails("classify", model_dir, tmp_path / "none.jpg")
    assert "no images in folder" in fails("classify", model_dir, tmp_path / "empty")
    assert "no images match" in fails("classify", model_dir, tmp_path / "*.jpg")
    for option in ("--html", "--grid"):
        assert "none/out: cannot write" in fails("classify", model_dir, image, option, tmp_path / "none/out")
        assert "is a folder" in fails("classify", model_dir, image, option, tmp_path)
    assert not (tmp_path / "none").exists()


def test_unreadable_models(fails, model_dir, classes, tmp_path):
    image = classes / "val/red/0.png"
    weights = (model_dir / "model.safetensors").read_bytes()
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        if (model_dir / name).exists():
            (broken / name).write_bytes((model_dir / name).read_bytes())
    assert "broken" in fails("classify", broken, image)  # no weights
    for cut in (4, 100, len(weights) - 10):
        (broken / "model.safetensors").write_bytes(weights[:cut])
        assert "model.safetensors" in fails("classify", broken, image)
    (broken / "model.safetensors").unlink()

    class Canary:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    for name in ("model.safetensors", "pytorch_model.bin"):
        (broken / name).write_bytes(pickle.dumps({"head.weight": Canary()}))
        fails("classify", broken, image)
        (broken / name).unlink()
    torch.save({"head.weight": Canary()}, broken / "pytorch_model.bin")
    fails("classify", broken, image)
    assert not (tmp_path / "executed").exists()
    (broken / "config.json").write_text("{")
    assert "config.json" in fails("classify", broken, image)


# The other commands.


def test_embed(run, fails, model_dir, classes, tmp_path):
    output = tmp_path / "f.npz"
    code, out, _ = run("embed", model_dir, classes / "val", "--output", output, "--normalize")
    assert code == 0
    assert "[9, 48]" in out
    with np.load(output) as file:
        features, sources = file["features"], file["sources"]
    expected = va.embed(va.load(model_dir), classes / "val", normalize=True)
    np.testing.assert_array_equal(features, expected.numpy())
    assert sources[0].endswith("val/blue/0.png")
    (tmp_path / "bad.png").write_bytes(b"")
    code, _, err = run("embed", model_dir, tmp_path / "bad.png", classes / "val/red", "--output", output)
    assert code == 3
    assert "bad.png" in err
    with np.load(output) as file:
        assert file["features"].shape == (3, 48)
    assert "none of the 1 images" in run("embed", model_dir, tmp_path / "bad.png", "--output", output)[2]
    assert "cannot write" in fails("embed", model_dir, classes / "val", "--output", tmp_path / "none/f.npz")
    (tmp_path / "texts.txt").write_text("a cat\n")
    assert "--pooling" in fails(
        "embed", model_dir, "--texts-file", tmp_path / "texts.txt", "--pooling", "avg"
    )


def test_eval(run, fails, model_dir, classes, tmp_path):
    code, out, _ = run("eval", model_dir, classes / "val", "--json", "--workers", 0)
    found = json.loads(out)
    assert code == 0
    assert found["images"] == 9
    results = va.classify(va.load(model_dir), classes / "val", top_k=1)
    right = [r.label == Path(r.source).parent.name for r in results]
    assert found["top1"] == pytest.approx(np.mean(right))
    assert "top-1" in run("eval", model_dir, classes / "val", "--workers", 0)[1]
    assert "none" in fails("eval", model_dir, tmp_path / "none")
    assert "--templates: is for a CLIP" in fails("eval", model_dir, classes / "val", "--templates", "a {}")


def test_eval_confusion_has_the_precision_of_the_scores(run, model_dir, classes, tmp_path, monkeypatch):
    seen = []
    forward = va.ViT.forward

    def watched(self, x, *args):
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward(self, x, *args)

    monkeypatch.setattr(va.ViT, "forward", watched)
    for precision, used in (("fp32", False), ("bf16", True)):
        seen.clear()
        options = ("--workers", 0, "--precision", precision, "--confusion", tmp_path / "c.png")
        assert run("eval", model_dir, classes / "val", "--batch-size", 9, *options)[0] == 0
        assert seen == [used, used]


@pytest.mark.parametrize("layout", ["hf", "timm"])
def test_convert(run, fails, model_dir, classes, tmp_path, layout):
    target = tmp_path / "out"
    assert run("convert", model_dir, target, "--layout", layout)[0] == 0
    before, after = (va.classify(va.load(d), classes / "val") for d in (model_dir, target))
    assert before == after
    assert "is not empty" in fails("convert", model_dir, target, "--layout", layout)
    assert run("convert", model_dir, target, "--layout", layout, "--overwrite")[0] == 0
    (tmp_path / "file").write_text("")
    fails("convert", model_dir, tmp_path / "file" / "sub")
    assert "onnx" in fails("convert", model_dir, tmp_path / "other", "--layout", "onnx")


def test_train(run, fails, classes, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"data: {{train: {classes}/train, val: {classes}/val, batch_size: 8, workers: 0}}\n"
        "model: {name: vit_tiny_patch16_224, img_size: 32,\n"
        "        overrides: {patch_size: 8, embed_dim: 48, depth: 2, num_heads: 3}}\n"
        f"train: {{epochs: 1, out: {tmp_path}/run, device: cpu}}\n"
    )
    code, out, _ = run("train", "vit", "--config", config, "--train.epochs", 2)
    assert code == 0
    assert "6 steps" in out  # flags win over the file
    model = va.load(tmp_path / "run/model")
    assert model.config.embed_dim == 48
    assert sorted(model.labels.values()) == ["blue", "green", "red"]
    assert run("classify", tmp_path / "run/model", classes / "val")[0] == 0

    assert "none" in fails("train", "vit", "--data.train", tmp_path / "none")
    config.write_text("optim: {lrr: 1}\n")
    assert "did you mean" in fails("train", "vit", "--config", config)
    config.write_text(f"data: {{train: {classes}/train}}\nmodel: {{name: vit_tinny_patch16_224}}\n")
    assert "vit_tiny_patch16_224" in fails(
        "train", "vit", "--config", config, "--train.out", tmp_path / "run2"
    )
