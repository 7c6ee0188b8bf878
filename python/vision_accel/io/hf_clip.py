# SPDX-License-Identifier: Apache-2.0
"""Hugging Face layout of CLIP, MetaCLIP 2 and SigLIP: configs and weight names, both ways."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from vision_accel.io._values import check_numbers, group
from vision_accel.io._weights import Weight, layer, read_weights, write_weights
from vision_accel.io.hf_vit import ACTIVATIONS, WRITTEN_ACTIVATIONS, check_sizes, ratio

# Model type -> its image processor where preprocessor_config.json names none.
PROCESSORS = {
    "clip": "CLIPImageProcessor",
    "metaclip_2": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
}

_CLASSES = {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model", "siglip": "SiglipModel"}

_CLIP = {
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "num_channels": 3,
    "image_size": 224, "num_hidden_layers": 12,
}  # fmt: skip
_SIGLIP = _CLIP | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_WIDE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_NARROW = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
# What transformers assumes where config.json is silent.
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "vision": _CLIP | _WIDE | {"patch_size": 32},
        "text": _CLIP | _NARROW | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
    },
    "siglip": {
        "vision": _SIGLIP | _WIDE | {"patch_size": 16, "vision_use_head": True},
        "text": _SIGLIP | _WIDE | {"vocab_size": 32000, "max_position_embeddings": 64, "eos_token_id": 49407},
    },
}
_DEFAULTS["metaclip_2"] = _DEFAULTS["clip"]
ARGMAX_EOS = 2  # transformers' CLIP reads this eos_token_id as: pool at the largest id


def read(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config fields, and weights in our names.

    Raises:
        ValueError: missing or unexpected weights, an option that cannot be honoured, or a contradiction.
    """
    kind = config["model_type"]
    vision, text = (_DEFAULTS[kind][tower] | _tower(config, tower) for tower in ("vision", "text"))
    check_numbers("", config, ("projection_dim",))
    siglip = kind == "siglip"
    if siglip and not vision["vision_use_head"]:
        raise ValueError("vision_use_head false is not supported: such a model has no image embedding")
    eos = text["eos_token_id"]
    if not siglip and not isinstance(eos, int):
        raise ValueError(f"text_config.eos_token_id must be one number, got {eos!r}")
    fields: dict[str, Any] = {
        "embed_dim": vision["hidden_size"] if siglip else config.get("projection_dim", 512),
        "vision": {
            "img_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "in_chans": vision["num_channels"],
            "pos_embed_antialias": False,
            "pre_norm": not siglip,
            "class_token": not siglip,
            "global_pool": "map" if siglip else "token",
            **_common("vision", vision),
        },
        "text": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "causal": not siglip,
            "pool": "last" if siglip else "argmax" if kind == "clip" and eos == ARGMAX_EOS else "eos",
            "eos_id": eos if isinstance(eos, int) else 49407,
            **_common("text", text),
        },
        "vision_proj": "none" if siglip else "linear",
        "text_proj_bias": siglip,
        "init_logit_bias": -10.0 if siglip else None,
    }
    width = text.get("projection_size") or text["hidden_size"]
    if siglip and width != fields["embed_dim"]:
        raise ValueError(
            f"text_config.projection_size {width} contradicts vision_config.hidden_size"
            f" {fields['embed_dim']}: images and texts must share one space"
        )
    found = read_weights(_weights(fields, kind), tensors, lambda name: name.endswith(".position_ids"))
    return fields, found


def _tower(config: dict[str, Any], tower: str) -> dict[str, Any]:
    """The options of one tower; old files have them twice."""
    options = group(config, f"{tower}_config")
    for key, value in group(config, f"{tower}_config_dict").items():
        if key in options and options[key] != value and key in {*_WIDE, *_SIGLIP, *_OWN}:
            raise ValueError(
                f"{tower}_config.{key} is {options[key]!r}, but {tower}_config_dict.{key} is {value!r}:"
                " the file contradicts itself"
            )
        options[key] = value
    return options


_OWN = {"patch_size", "vocab_size", "max_position_embeddings", "eos_token_id", "projection_size"}


def _common(tower: str, c: dict[str, Any]) -> dict[str, Any]:
    check_sizes(c, f"{tower}_config.")
    if c["hidden_act"] not in list(ACTIVATIONS):  # a list: the value may be of any kind
        raise ValueError(
            f"{tower}_config.hidden_act {c['hidden_act']!r} is not supported; supported are"
            f" {', '.join(ACTIVATIONS)}"
        )
    return {
        "embed_dim": c["hidden_size"],
        "depth": c["num_hidden_layers"],
        "num_heads": c["num_attention_heads"],
        "mlp_ratio": ratio(c["intermediate_size"], c["hidden_size"]),
        "act_layer": ACTIVATIONS[c["hidden_act"]],
        "norm_eps": c["layer_norm_eps"],
        "attn_drop_rate": c["attention_dropout"],
    }


def _weights(c: dict[str, Any], kind: str) -> Iterator[Weight]:
    siglip = kind == "siglip"
    image, text = "vision_model.embeddings", "text_model.embeddings"
    yield Weight(("visual.pos_embed",), (f"{image}.position_embedding.weight",), lead=1)
    yield from layer("visual.patch_embed.proj", f"{image}.patch_embedding", bias=siglip)
    if not siglip:
        yield Weight(("visual.cls_token",), (f"{image}.class_embedding",), lead=2)
        yield from layer("visual.norm_pre", "vision_model.pre_layrnorm")  # sic
    yield from layer("visual.norm", "vision_model.post_layernorm")
    yield from layer("text.token_embedding", f"{text}.token_embedding", bias=False)
    yield Weight(("text.pos_embed",), (f"{text}.position_embedding.weight",), lead=1)
    yield from layer("text.norm", "text_model.final_layer_norm")
    for tower, theirs in (("visual", "vision_model"), ("text", "text_model")):
        for i in range(c["vision" if tower == "visual" else "text"]["depth"]):
            a, b = f"{tower}.blocks.{i}", f"{theirs}.encoder.layers.{i}"
            yield from layer(f"{a}.norm1", f"{b}.layer_norm1")
            yield from layer(f"{a}.attn.qkv", *(f"{b}.self_attn.{x}_proj" for x in "qkv"))
            yield from layer(f"{a}.attn.proj", f"{b}.self_attn.out_proj")
            yield from layer(f"{a}.norm2", f"{b}.layer_norm2")
            yield from layer(f"{a}.mlp.fc1", f"{b}.mlp.fc1")
            yield from layer(f"{a}.mlp.fc2", f"{b}.mlp.fc2")
    yield Weight(("logit_scale",), ("logit_scale",), lead=-1)
    if not siglip:
        yield from layer("visual_projection", "visual_projection", bias=False)
        yield from layer("text_projection", "text_projection", bias=False)
        return
    yield Weight(("logit_bias",), ("logit_bias",), lead=-1)
    yield from layer("text_projection", "text_model.head")
    pool, head = "visual.attn_pool", "vision_model.head"
    yield Weight((f"{pool}.latent",), (f"{head}.probe",))
    for part in ("weight", "bias"):
        yield Weight((f"{pool}.q.{part}", f"{pool}.kv.{part}"), (f"{head}.attention.in_proj_{part}",))
    yield from layer(f"{pool}.proj", f"{head}.attention.out_proj")
    yield from layer(f"{pool}.norm", f"{head}.layernorm")
    yield from layer(f"{pool}.mlp.fc1", f"{head}.mlp.fc1")
    yield from layer(f"{pool}.mlp.fc2", f"{head}.mlp.fc2")


def write(c: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json, and the weights in the names of the file; ``c`` holds every field of the config.

    Raises:
        ValueError: what Hugging Face's classes cannot express.
    """
    at_two = (c["text"]["pool"], c["text"]["eos_id"]) == ("eos", ARGMAX_EOS)
    kind = "siglip" if c["vision"]["global_pool"] == "map" else "metaclip_2" if at_two else "clip"
    reasons = _not_expressible(c, kind)
    if reasons:
        raise ValueError(f"Hugging Face's {kind} cannot express {', '.join(reasons)}")
    vision, text = (_write_tower(c[tower]) for tower in ("vision", "text"))
    vision |= {
        "model_type": f"{kind}_vision_model",
        "image_size": c["vision"]["img_size"][0],
        "patch_size": c["vision"]["patch_size"][0],
        "num_channels": c["vision"]["in_chans"],
    }
    text |= {
        "model_type": f"{kind}_text_model",
        "max_position_embeddings": c["text"]["context_length"],
        "vocab_size": c["text"]["vocab_size"],
        "eos_token_id": ARGMAX_EOS if c["text"]["pool"] == "argmax" else c["text"]["eos_id"],
    }
    config: dict[str, Any] = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vision_config": vision,
        "text_config": text,
        "dtype": str(tensors["logit_scale"].dtype).removeprefix("torch."),
    }
    if kind == "siglip":
        text["projection_size"] = c["embed_dim"]
    else:
        config |= {"projection_dim": c["embed_dim"], "logit_scale_init_value": c["init_logit_scale"]}
        text["projection_dim"] = vision["projection_dim"] = c["embed_dim"]
    found = write_weights(_weights(c, kind), tensors)
    if kind == "siglip":
        found |= {name: found[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    return config, found


def _write_tower(c: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": c["embed_dim"],
        "intermediate_size": int(c["embed_dim"] * c["mlp_ratio"]),
        "num_hidden_layers": c["depth"],
        "num_attention_heads": c["num_heads"],
        "hidden_act": WRITTEN_ACTIVATIONS.get(c["act_layer"], c["act_layer"]),
        "layer_norm_eps": c["norm_eps"],
        "attention_dropout": c["attn_drop_rate"],
    }


def _not_expressible(c: dict[str, Any], kind: str) -> list[str]:
    siglip = kind == "siglip"
    expected: dict[str, dict[str, Any]] = {
        "vision.": {
            "global_pool": "map" if siglip else "token", "class_token": not siglip, "pre_norm": not siglip,
            "reg_tokens": 0, "pos_embed": "learn", "no_embed_class": False, "qkv_bias": True,
            "proj_bias": True, "qk_norm": False, "scale_attn_norm": False, "scale_mlp_norm": False,
            "init_values": None, "distilled": False, "mlp_layer": "mlp", "final_norm": True,
            "dynamic_img_pad": False, "pooler_dim": None,
        },
        "text.": {
            "causal": not siglip, "init_values": None,
            "pool": "last" if siglip else "eos" if c["text"]["pool"] == "eos" else "argmax",
        },
        "": {
            "vision_proj": "none" if siglip else "linear", "text_proj": "linear", "vision_proj_bias": False,
            "text_proj_bias": siglip,
        },
    }  # fmt: skip
    reasons = [
        f"vision.{k}={c['vision'][k]}, which is not square"
        for k in ("img_size", "patch_size")
        if c["vision"][k][0] != c["vision"][k][1]
    ]
    for prefix, values in expected.items():
        options = c[prefix.rstrip(".")] if prefix else c
        reasons += [f"{prefix}{k}={options[k]!r}" for k, v in values.items() if options[k] != v]
    if c["vision"]["fc_norm"]:
        reasons.append("vision.fc_norm=True")
    if (c["init_logit_bias"] is not None) != siglip:
        reasons.append("no logit bias" if siglip else "a logit bias")
    return reasons
