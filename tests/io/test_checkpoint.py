# SPDX-License-Identifier: Apache-2.0
"""Damaged, foreign and hostile checkpoints, the hub, failing saves: one clear error, nothing half done."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelHubMixin, PyTorchModelHubMixin
from safetensors.torch import save_file

import vision_accel as va
from vision_accel.io import find_directory
from vision_accel.io.files import written_aside
from vision_accel.io.tensors import read_tensors


def small(**options):
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "depth": 2, "num_classes": 4}
    return va.create_model("vit_tiny_patch16_224", **(config | options)).eval()


@pytest.fixture
def saved(tmp_path):
    va.save(small(), tmp_path / "model")
    return tmp_path / "model"


def test_truncated_safetensors(saved):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    for count in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:count])
        with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
            va.load(saved)


@pytest.mark.parametrize("protocol", ["torch", 2, 4])
def test_pickle_under_the_name_of_safetensors(saved, protocol):
    file = saved / "model.safetensors"
    if protocol == "torch":
        torch.save(small().state_dict(), file)
    else:
        file.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(
        ValueError, match=r"model\.safetensors is a pickle, not safetensors; it was not opened"
    ):
        va.load(saved)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_is_not_executed(saved, zipped, monkeypatch):
    monkeypatch.chdir(saved)
    (saved / "model.safetensors").unlink()
    file = saved / "pytorch_model.bin"
    if zipped:
        torch.save({"weight": Bomb()}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin holds more than tensors"):
        va.load(saved)
    assert not (saved / "exploded").exists()


def test_pickle_of_something_else(saved):
    (saved / "model.safetensors").unlink()
    file = saved / "pytorch_model.bin"
    torch.save([1, 2, 3], file)
    with pytest.raises(ValueError, match="is not a dictionary of tensors"):
        va.load(saved)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a whole PyTorch file"):
        va.load(saved)


def test_shards(saved):
    tensors = read_tensors(saved)
    (saved / "model.safetensors").unlink()
    index = saved / "model.safetensors.index.json"
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[:5]}, saved / "model-1.safetensors")
    save_file({n: tensors[n] for n in names[5:]}, saved / "model-2.safetensors")
    files = {n: f"model-{1 if i < 5 else 2}.safetensors" for i, n in enumerate(names)}
    index.write_text(json.dumps({"weight_map": files}))
    assert va.load(saved).config.depth == 2
    (saved / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names model-2\.safetensors, which is missing"):
        va.load(saved)
    index.write_text(json.dumps({"weight_map": {names[0]: "../model-1.safetensors"}}))
    with pytest.raises(ValueError, match="is not a file name"):
        va.load(saved)
    index.write_text("{}")
    with pytest.raises(ValueError, match="weight_map must map names to files"):
        va.load(saved)


def test_missing_files(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors or pytorch_model\.bin in"):
        va.load(saved)
    (saved / "config.json").rename(saved / "other.json")
    with pytest.raises(FileNotFoundError, match=r"no config\.json in .*it holds other\.json"):
        va.load(saved)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="it is empty"):
        va.load(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such directory"):
        va.load(tmp_path / "nothing")
    (tmp_path / "clip.nemo").write_bytes(b"tar")
    with pytest.raises(ValueError, match=r"clip.nemo: .nemo archives cannot be read"):
        va.load(tmp_path / "clip.nemo")
    with pytest.raises(NotADirectoryError, match="is a file; give the directory"):
        va.load(saved / "other.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config\.json is not valid JSON"),
        ("[1]", r"config\.json must hold a JSON object, got list"),
        ("{}", "of no known layout.* but nothing"),
        ('{"hidden": 3, "act": "gelu"}', "of no known layout.* but act, hidden"),
        ('{"model_type": "clap"}', "model_type 'clap' is not supported"),
        ('{"model_type": ["vit"]}', "is not supported"),
        ('{"architecture": "resnet50"}', "unknown model 'resnet50'"),
        ('{"architecture": 3}', "model"),
        ("\x00\xff", r"config\.json is not valid JSON"),
    ],
)
def test_bad_config_file(saved, text, message):
    (saved / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        va.load(saved)


@pytest.mark.parametrize(("layout", "key"), [("hf", "num_hidden_layers"), ("timm", "depth")])
def test_a_config_of_more_layers_than_weights(tmp_path, layout, key):
    """Building that many would not end."""
    va.save(small(), tmp_path, layout)
    config = json.loads((tmp_path / "config.json").read_text())
    (config if layout == "hf" else config["model_args"])[key] = 10**9
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{tmp_path}: the config says {key} 1000000000, but there are only"):
        va.load(tmp_path)


def test_integer_weights(saved):
    tensors = read_tensors(saved)
    save_file({n: t.to(torch.int8) for n, t in tensors.items()}, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"must be floating point of 16 bits or more, but .* is torch\.int8"):
        va.load(saved)


def test_overrides(saved):
    model = va.load(saved, num_classes=9, img_size=(48, 64), drop_path_rate=0.1)
    assert model(torch.randn(2, 3, 48, 64)).shape == (2, 9)
    assert model.head.weight.std() > 0
    stored = va.load(saved)
    assert torch.equal(model.blocks[1].mlp.fc2.weight, stored.blocks[1].mlp.fc2.weight)
    assert torch.equal(model.pos_embed[:, 0], stored.pos_embed[:, 0])
    assert torch.equal(va.load(saved, num_classes=4).head.weight, stored.head.weight)
    pooled = va.load(saved, global_pool="avg")
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(pooled(x, pre_logits=True), pooled.forward_features(x)[:, 1:].mean(1))
    with pytest.raises(TypeError, match="no option 'num_class'; did you mean 'num_classes'"):
        va.load(saved, num_class=3)
    with pytest.raises(ValueError, match=r"missing blocks\.2\.norm1\.weight.*and 4 more"):
        va.load(saved, depth=3)


def test_new_head_follows_the_seed(saved):
    heads = []
    for _ in range(2):
        torch.manual_seed(7)
        heads.append(va.load(saved, num_classes=9).head.weight)
    assert torch.equal(*heads)


def test_loaded_model_does_not_depend_on_its_file(saved):
    model = va.load(saved)
    before = [p.clone() for p in model.parameters()]
    with (saved / "model.safetensors").open("r+b") as f:
        f.truncate(0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_dtype_and_device(saved):
    assert va.load(saved, dtype=torch.float64).pos_embed.dtype == torch.float64
    assert va.load(saved, device="meta").pos_embed.device.type == "meta"


def test_saving_over_a_model_replaces_it_and_keeps_other_files(saved):
    (saved / "notes.txt").write_text("mine")
    before = {f.name for f in saved.iterdir()}
    va.save(small(num_classes=6), saved)
    assert va.load(saved).config.num_classes == 6
    assert {f.name for f in saved.iterdir()} == before
    assert [f.name for f in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("existing", [True, False])
def test_failed_save_changes_nothing(saved, existing, monkeypatch):
    if not existing:
        shutil.rmtree(saved)
    else:
        before = {f.name: f.read_bytes() for f in saved.iterdir()}

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vision_accel.io.checkpoint.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        va.save(small(num_classes=6), saved)
    assert [f.name for f in saved.parent.iterdir()] == (["model"] if existing else [])
    if existing:
        assert {f.name: f.read_bytes() for f in saved.iterdir()} == before


def test_disk_really_full(tmp_path):
    """A file size limit stands for the full disk."""
    program = """if True:
        import resource, signal, sys
        import vision_accel as va
        model = va.create_model("test_vit")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
        try:
            va.save(model, sys.argv[1])
        except OSError as e:
            print(type(e).__name__, e)
    """
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "model"], capture_output=True, text=True, check=True
    )
    assert "OSError" in run.stdout
    assert list(tmp_path.iterdir()) == []


def test_save_to_a_file_or_unknown_layout(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file"):
        va.save(small(), tmp_path / "file")
    with pytest.raises(ValueError, match=r"layout must be one of hf, timm, .*, got 'onnx'"):
        va.save(small(), tmp_path / "model", layout="onnx")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_saved_directory_has_the_usual_permissions(saved):
    expected = saved.parent / "plain"
    expected.mkdir()
    assert saved.stat().st_mode == expected.stat().st_mode


def test_interrupted_block_leaves_nothing(tmp_path):
    def interrupted():
        with written_aside(tmp_path / "model") as aside:
            (aside / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "avg"}, "vit cannot express global_pool='avg'; use layout='timm'"),
        ({"qk_norm": True, "pre_norm": True}, "qk_norm=True, pre_norm=True"),
        ({"init_values": 0.1}, "dinov2 cannot express global_pool='token'"),
        ({"class_token": False, "global_pool": "max"}, "class_token=False"),
        ({"reg_tokens": 2, "num_classes": 0}, "register tokens without layer scale, position embeddings of"),
        ({"mlp_layer": "swiglu"}, "mlp_layer='swiglu'"),
    ],
)
def test_not_expressible_in_transformers(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        va.save(small(**options), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_mixin(saved, tmp_path):
    model = va.ViT.from_pretrained(saved, num_classes=5)
    assert isinstance(model, ModelHubMixin)
    assert not isinstance(model, PyTorchModelHubMixin)  # that one falls back to pickles
    assert model.config.num_classes == 5
    model.save_pretrained(tmp_path / "again", layout="timm")
    again = va.ViT.from_pretrained(str(tmp_path / "again"), dtype=torch.bfloat16)
    assert again.pos_embed.dtype == torch.bfloat16


def test_push_to_hub_uploads_what_save_writes(saved, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_options):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, **_options):
            uploaded.update({f.name: f.read_bytes() for f in folder_path.iterdir()})
            return "done"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert va.load(saved).push_to_hub("me/model") == "done"
    assert uploaded == {f.name: f.read_bytes() for f in saved.iterdir()}


def test_hub_id(saved, monkeypatch):
    asked = []

    def snapshot_download(hub_id, allow_patterns, **options):
        asked.append((hub_id, allow_patterns, options))
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert va.load("org/some-model@v2").config.depth == 2
    hub_id, patterns, options = asked[0]
    assert (hub_id, options) == ("org/some-model", {"revision": "v2"})
    assert not any("bin" in p or p == "*" for p in patterns)
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    find_directory("hf-hub:org/some-model")
    assert "pytorch_model.bin" in asked[-1][1]


def test_hub_offline(tmp_path):
    program = (
        "import vision_accel as va\ntry: va.load('org/some-model')\nexcept FileNotFoundError as e: print(e)"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
    assert run.stdout.startswith("no directory 'org/some-model', and not found on the Hugging Face Hub: ")


def test_importing_needs_no_torch():
    program = "import sys, vision_accel as va; assert 'load' in dir(va); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
