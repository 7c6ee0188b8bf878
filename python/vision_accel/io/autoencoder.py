# SPDX-License-Identifier: Apache-2.0
"""The two layouts of AutoencoderKL: directories of diffusers, and single files of LDM (CompVis).

The weights have our names, as ours are diffusers'. LDM calls them otherwise, counts the decoder's resolutions
from the other end, and stores the attention's projections as 1 x 1 convolutions.
"""

import re
from typing import Any

from torch import Tensor

_FIELDS = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "latent_channels",
    "norm_num_groups",
    "act_fn",
    "mid_block_add_attention",
    "use_quant_conv",
    "use_post_quant_conv",
    "scaling_factor",
    "shift_factor",
    "sample_size",
    "latents_mean",
    "latents_std",
    "force_upcast",
)
_ONLY = {
    "down_block_types": "DownEncoderBlock2D",
    "up_block_types": "UpDecoderBlock2D",
}
# Attention in files of diffusers before 0.18.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
LDM_PREFIXES = ("first_stage_model.", "vae.", "")
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
LDM_FILE = "autoencoder_kl.safetensors"  # what we call a file in LDM's layout


def read_diffusers(
    config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config fields and weights; a ValueError names what cannot be honoured."""
    for key, only in _ONLY.items():
        value = config.get(key, only)
        wrong = [v for v in (value if isinstance(value, list | tuple) else [value]) if v != only]
        if wrong:
            raise ValueError(f"{key} {wrong[0]!r} is not supported, only {only}")
    renamed = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "attentions" in parts and parts[-2] in _OLD_ATTENTION:
            name = ".".join([*parts[:-2], _OLD_ATTENTION[parts[-2]], parts[-1]])
        renamed[name] = _as_linear(name, tensor)
    return {k: config[k] for k in _FIELDS if config.get(k) is not None}, renamed


def write_diffusers(config: dict[str, Any]) -> dict[str, Any]:
    """config.json."""
    levels = len(config["block_out_channels"])
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.31.0",
        "down_block_types": [_ONLY["down_block_types"]] * levels,
        "up_block_types": [_ONLY["up_block_types"]] * levels,
        **values,
    }


def read_ldm(tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config fields, as far as the weights tell them, and the weights.

    The scaling factor is not in the file: it is that of the model that the rest of the file, or the number of
    latent channels, points to. The number of groups is taken to be 32, as everywhere in LDM.

    Raises:
        ValueError: attention at other resolutions than the lowest, or nothing of an autoencoder.
    """
    prefix = next((p for p in LDM_PREFIXES if f"{p}decoder.mid.block_1.conv1.weight" in tensors), None)
    if prefix is None:
        raise ValueError("this is no autoencoder of LDM, and there is no config.json beside it")
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    own = {
        k.removeprefix(prefix): t
        for k, t in tensors.items()
        if k.startswith(prefix) and k.removeprefix(prefix).startswith(parts)
    }

    def count(pattern: str) -> int:
        return 1 + max((int(m[1]) for k in own if (m := re.match(pattern, k))), default=-1)

    levels = count(r"encoder\.down\.(\d+)\.")
    wrong = [k for k in own if re.match(r"(encoder\.down|decoder\.up)\.\d+\.attn\.", k)]
    if wrong:
        raise ValueError(f"attention at a higher resolution ({wrong[0]}) is not supported")
    try:
        channels = own["encoder.conv_out.weight"].shape[0] // 2
        config = {
            "in_channels": own["encoder.conv_in.weight"].shape[1],
            "out_channels": own["decoder.conv_out.weight"].shape[0],
            "block_out_channels": [
                own[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)
            ],
            "layers_per_block": count(r"encoder\.down\.0\.block\.(\d+)"),
            "latent_channels": channels,
            "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in own,
            "use_quant_conv": "quant_conv.weight" in own,
            "use_post_quant_conv": "post_quant_conv.weight" in own,
        }
    except KeyError as e:
        raise ValueError(f"the file has no {e.args[0]}") from e
    except IndexError as e:
        raise ValueError("a convolution in the file has too few dimensions") from e
    if channels == 16:  # SD 3 where its transformer lies beside it, else Flux
        third = any("joint_blocks" in k for k in tensors)
        scaling, shift = (1.5305, 0.0609) if third else (0.3611, 0.1159)
        config |= {"scaling_factor": scaling, "shift_factor": shift}
    elif any(k.startswith("conditioner.embedders.1.") for k in tensors):
        config["scaling_factor"] = 0.13025
    return config, {(n := _from_ldm(k, levels)): _as_linear(n, t) for k, t in own.items()}


def write_ldm(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under LDM's names.

    Raises:
        ValueError: another number of groups than LDM's.
    """
    for key, only in (("norm_num_groups", [32]), ("act_fn", ["silu", "swish"])):
        if config[key] not in only:
            raise ValueError(f"the layout ldm cannot express {key}={config[key]}, only {only[0]}")
    levels = len(config["block_out_channels"])
    written = {}
    for name, tensor in tensors.items():
        new = _to_ldm(name, levels)
        projection = ".attn_1." in new and ".norm." not in new and new.endswith("weight")
        written[new] = tensor[:, :, None, None] if projection else tensor
    return written


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    """Projections of the attention that are stored as 1 x 1 convolutions become matrices."""
    if ".attentions." in name and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor


_TO_LDM = [
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.group_norm\.", "attn_1.norm."),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.resnets\.", r"up.\1.block."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]
_FROM_LDM = [
    (r"norm_out\.", "conv_norm_out."),
    (r"nin_shortcut", "conv_shortcut"),
    (r"up\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"up\.(\d+)\.block\.", r"up_blocks.\1.resnets."),
    (r"down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"down\.(\d+)\.block\.", r"down_blocks.\1.resnets."),
    (r"attn_1\.proj_out\.", "attn_1.to_out.0."),
    (r"attn_1\.([qkv])\.", r"attn_1.to_\1."),
    (r"attn_1\.norm\.", "attn_1.group_norm."),
    (r"mid\.attn_1\.", "mid_block.attentions.0."),
    (r"mid\.block_1\.", "mid_block.resnets.0."),
    (r"mid\.block_2\.", "mid_block.resnets.1."),
]


def _to_ldm(name: str, levels: int) -> str:
    for pattern, new in _TO_LDM:
        name = re.sub(pattern, new, name)
    return re.sub(r"(?<=decoder\.up\.)\d+", lambda m: str(levels - 1 - int(m[0])), name)


def _from_ldm(name: str, levels: int) -> str:
    name = re.sub(r"(?<=decoder\.up\.)\d+", lambda m: str(levels - 1 - int(m[0])), name)
    for pattern, new in _FROM_LDM:
        name = re.sub(pattern, new, name)
    return name
