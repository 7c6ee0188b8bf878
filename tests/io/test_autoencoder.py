# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import vision_accel as va
from tests import reference_libs
from tests.models import vae_cases
from vision_accel.io import autoencoder

SMALL = {"block_out_channels": (32, 64, 64), "layers_per_block": 1}


def ours(**changes):
    torch.manual_seed(0)
    return va.create_model("autoencoder_kl_sd", **{**SMALL, **changes}).eval()


def assert_same(model, state):
    got = model.state_dict()
    assert got.keys() == state.keys()
    assert all(torch.equal(got[k], v) for k, v in state.items())


@pytest.mark.parity
@pytest.mark.parametrize("name", vae_cases.CONFIGS)
def test_diffusers_reads_what_we_write(name, tmp_path):
    diffusers = reference_libs.diffusers()
    reference = vae_cases.reference(**vae_cases.CONFIGS[name])
    reference.save_pretrained(tmp_path / "theirs")
    va.save(va.load(tmp_path / "theirs"), tmp_path / "ours")
    again, info = diffusers.AutoencoderKL.from_pretrained(
        tmp_path / "ours", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(info.values())
    assert_same(again, reference.state_dict())
    for key, value in vae_cases.CONFIGS[name].items():
        assert again.config[key] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parity
def test_diffusers_reads_our_ldm_file(tmp_path):
    diffusers = reference_libs.diffusers()
    model = ours()
    va.save(model, tmp_path / "ldm", layout="ldm")
    va.save(model, tmp_path / "config")
    file = tmp_path / "ldm" / "autoencoder_kl.safetensors"
    again = diffusers.AutoencoderKL.from_single_file(
        str(file), config=str(tmp_path / "config"), low_cpu_mem_usage=False
    )
    assert_same(again, model.state_dict())


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_ldm_files(prefix, tmp_path):
    model = ours(latent_channels=4)
    va.save(model, tmp_path, layout="ldm")
    tensors = load_file(tmp_path / "autoencoder_kl.safetensors")
    assert tensors["encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    # The decoder's finest resolution is called up.0.
    assert torch.equal(
        tensors["decoder.up.0.block.0.conv1.weight"], model.decoder.up_blocks[2].resnets[0].conv1.weight
    )
    others = {"model.diffusion_model.out.weight": torch.zeros(1)} if prefix else {}
    file = tmp_path / "whole.safetensors"
    save_file({prefix + k: v for k, v in tensors.items()} | others, file)
    again = va.load(file)
    assert_same(again, model.state_dict())
    assert again.config == model.config.replace(sample_size=again.config.sample_size)
    torch.save({"state_dict": {prefix + k: v for k, v in tensors.items()}}, tmp_path / "whole.ckpt")
    assert_same(va.load(tmp_path / "whole.ckpt"), model.state_dict())


def test_scaling_of_ldm_files(tmp_path):
    flux = ours(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
    va.save(flux, tmp_path, layout="ldm")
    config = va.load(tmp_path).config
    assert (config.scaling_factor, config.shift_factor) == (0.3611, 0.1159)
    assert not config.use_quant_conv
    tensors = load_file(tmp_path / "autoencoder_kl.safetensors")
    tensors = {f"first_stage_model.{k}": v for k, v in tensors.items()}
    tensors["model.diffusion_model.joint_blocks.0.x"] = torch.zeros(1)
    save_file(tensors, tmp_path / "sd3.safetensors")
    config = va.load(tmp_path / "sd3.safetensors").config
    assert (config.scaling_factor, config.shift_factor) == (1.5305, 0.0609)
    assert va.load(tmp_path / "sd3.safetensors", scaling_factor=2.0).config.scaling_factor == 2.0


def test_in_a_pipeline_directory(tmp_path):
    model = ours()
    va.save(model, tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    assert_same(va.load(tmp_path), model.state_dict())


@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [
        {"max_shard_size": "100KB"},
        {"max_shard_size": "100KB", "safe_serialization": False},
        {"variant": "fp16"},
    ],
    ids=str,
)
def test_files_of_diffusers(options, tmp_path):
    reference = vae_cases.reference(block_out_channels=(32, 64))
    reference.save_pretrained(tmp_path / "vae", **options)
    model = va.load(tmp_path)  # a directory that has nothing but the autoencoder's
    assert_same(model, reference.state_dict())


def test_the_file_of_a_directory(tmp_path):
    model = ours()
    va.save(model, tmp_path)
    assert_same(va.load(tmp_path / "diffusion_pytorch_model.safetensors"), model.state_dict())


def test_size_of_two_numbers(tmp_path):
    va.save(ours(sample_size=(8, 16)), tmp_path)
    model = va.load(tmp_path)
    assert model.config.sample_size == (8, 16)
    assert next(va.infer.sample(model, 1)).size == (16, 8)


def test_groups_of_an_ldm_file(tmp_path):
    """The file does not say how many there are."""
    model = ours(block_out_channels=(24, 48), norm_num_groups=8)
    tensors = autoencoder.write_ldm(
        {**model.to_checkpoint("ldm").config, "norm_num_groups": 32}, model.state_dict()
    )
    file = tmp_path / "narrow.safetensors"
    save_file(tensors, file)
    with pytest.raises(ValueError, match="norm_num_groups=32 must divide the width 24"):
        va.load(file)
    assert_same(va.load(file, norm_num_groups=8), model.state_dict())


def test_old_names_of_the_attention(tmp_path):
    model = ours()
    va.save(model, tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        tensors[name] = tensor
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in tensors
    save_file(tensors, file)
    assert_same(va.load(tmp_path), model.state_dict())


def test_dtype_of_the_file_is_kept(tmp_path):
    va.save(ours().half(), tmp_path)
    assert va.load(tmp_path).dtype == torch.float16
    assert va.load(tmp_path, dtype=torch.float32).dtype == torch.float32


def change(directory, **config):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"act_fn": "tanh"}, "act_fn must be silu, swish, gelu, relu, mish, got 'tanh'"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
        ({"down_block_types": 5}, "down_block_types 5 is not supported"),
        ({"latent_channels": 5}, "of another shape"),
        ({"norm_num_groups": 0}, "norm_num_groups must be positive, got 0"),
        ({"scaling_factor": 0}, "scaling_factor must be finite and not 0"),
        ({"mid_block_add_attention": False}, "unexpected"),
        ({"layers_per_block": 10**8}, "says layers_per_block 100000000, but there are only"),
        ({"block_out_channels": [32] * 1000}, "says block_out_channels 1000, but there are only"),
        ({"block_out_channels": [10**9 * 32]}, "no model that can be built: .*32000000000"),
        ({"layers_per_block": "two"}, "config.json|layers_per_block|two|not supported"),
    ],
    ids=str,
)
def test_bad_config(config, message, tmp_path):
    va.save(ours(), tmp_path)
    change(tmp_path, **config)
    with pytest.raises(ValueError, match=message):
        va.load(tmp_path)


def test_bad_files(tmp_path):
    model = ours(norm_num_groups=16)
    with pytest.raises(ValueError, match="ldm cannot express norm_num_groups=16"):
        va.save(model, tmp_path / "ldm", layout="ldm")
    with pytest.raises(ValueError, match="layout 'timm' is for another kind of model"):
        va.save(model, tmp_path / "timm", layout="timm")
    with pytest.raises(ValueError, match="layout 'timm' is for another kind of model"):
        va.save(model, tmp_path / "vit", layout="timm")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="this is no autoencoder of LDM"):
        va.load(tmp_path / "other.safetensors")
    shutil.rmtree(tmp_path / "ldm", ignore_errors=True)
    va.save(ours(), tmp_path / "ldm", layout="ldm")
    file = tmp_path / "ldm" / "autoencoder_kl.safetensors"
    tensors = load_file(file)
    del tensors["encoder.conv_out.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"has no encoder\.conv_out\.weight"):
        va.load(file)
    tensors["encoder.conv_out.weight"] = torch.zeros(())
    save_file(tensors, file)
    with pytest.raises(ValueError, match="too few dimensions"):
        va.load(file)
    tensors["encoder.down.0.attn.0.q.weight"] = torch.zeros(1)
    save_file(tensors, file)
    with pytest.raises(ValueError, match="attention at a higher resolution"):
        va.load(file)
