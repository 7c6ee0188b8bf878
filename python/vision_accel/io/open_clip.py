# SPDX-License-Identifier: Apache-2.0
"""open_clip's layout of CLIP: open_clip_config.json and weight names, both ways; its bare state dicts.

Three kinds of names are known: the native ones (OpenAI's), with ``text.`` in front of the text tower
(``custom_text``), and image towers of timm (``visual.trunk.``).
"""

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from vision_accel.io._values import check_numbers, group
from vision_accel.io._weights import Weight, layer, read_weights, write_weights
from vision_accel.io.hf_vit import one, ratio

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)

_MODEL_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale"}
_MODEL_KEYS |= {"init_logit_bias", "nonscalar_logit_scale"}
# Options, and the one value of each that is honoured.
_MUST_BE: dict[str, Any] = {
    "block_type": None, "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False,
    "scale_attn_inner": False, "scale_attn": False, "scale_fc": False, "attentional_pool": False,
    "embed_cls": False, "hf_model_name": None, "use_pad_mask": False,
}  # fmt: skip
_VISION_KEYS = {
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value",
    "patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "no_ln_pre", "pos_embed_type",
    "final_ln_after_pool", "pool_type", "output_tokens", "act_kwargs", "norm_kwargs", "timm_model_name",
    "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path",
}  # fmt: skip
_TEXT_KEYS = {
    "context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "width",
    "heads", "layers", "mlp_ratio", "ls_init_value", "pad_id", "bos_id", "eos_id", "no_causal_mask",
    "final_ln_after_pool", "pool_type", "proj_bias", "proj_type", "output_tokens", "act_kwargs",
    "norm_kwargs", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "correct_cls_mask",
}  # fmt: skip
_LEFTOVERS = {"attn_mask", "text.attn_mask", "input_resolution", "context_length", "vocab_size"}


def read_config(model: dict[str, Any]) -> dict[str, Any]:
    """Config fields from the ``model_cfg`` of open_clip_config.json.

    An image tower of timm is left as ``vision = {"timm": name, ...changes}``: the variants are the model's.

    Raises:
        ValueError: an unknown option, or one that cannot be honoured.
    """
    _check("model_cfg", model, _MODEL_KEYS)
    vision, text = (group(model, f"{tower}_cfg") for tower in ("vision", "text"))
    _check("vision_cfg", vision, _VISION_KEYS)
    _check("text_cfg", text, _TEXT_KEYS)
    check_numbers("model_cfg.", model, ("embed_dim",))
    for where, options in (("vision_cfg.", vision), ("text_cfg.", text)):
        check_numbers(where, options, _WHOLE, _REAL)
    quick = bool(model.get("quick_gelu", False))
    if vision.get("timm_model_name"):
        tower, head = _timm_tower(vision)
    else:
        tower, head = _native_tower(vision, quick), {"vision_proj": "linear", "vision_proj_bias": False}
    width = text.get("width", 512)
    return {
        "embed_dim": model["embed_dim"],
        "vision": tower,
        "text": {
            "context_length": text.get("context_length", 77),
            "vocab_size": text.get("vocab_size", 49408),
            "embed_dim": width,
            "num_heads": text.get("heads", 8),
            "depth": text.get("layers", 12),
            "mlp_ratio": ratio(int(width * float(text.get("mlp_ratio", 4.0))), width),
            "act_layer": _activation("text_cfg", quick, text),
            "norm_eps": _eps("text_cfg", text),
            "init_values": text.get("ls_init_value"),
            "causal": not text.get("no_causal_mask", False),
            "pool": _one_of("text_cfg", text, "pool_type", "argmax", ("argmax", "eos", "first", "last")),
            "eos_id": text.get("eos_id") if text.get("eos_id") is not None else 2,
        },
        **head,
        "text_proj": _one_of("text_cfg", text, "proj_type", "linear", ("linear", "none")),
        "text_proj_bias": bool(text.get("proj_bias", False)) and text.get("proj_type") != "none",
        "init_logit_scale": model.get("init_logit_scale", math.log(1 / 0.07)),
        "init_logit_bias": model.get("init_logit_bias"),
    }


_WHOLE = ("width", "layers", "heads", "head_width", "image_size", "patch_size", "context_length")
_REAL = ("mlp_ratio", "patch_dropout")


def _check(where: str, options: dict[str, Any], known: set[str]) -> None:
    for key, value in options.items():
        if key in _MUST_BE:
            if value != _MUST_BE[key]:
                raise ValueError(f"{where}.{key} = {value!r} is not supported")
        elif key not in known:
            raise ValueError(f"{where}.{key} = {value!r} is not known here")


def _one_of(where: str, options: dict[str, Any], key: str, default: str, values: tuple[str, ...]) -> str:
    value = options.get(key, default)
    if value not in values:
        raise ValueError(f"{where}.{key} must be one of {', '.join(values)}, got {value!r}")
    return str(value)


def _activation(where: str, quick: bool, options: dict[str, Any]) -> str:
    arguments = options.get("act_kwargs") or {}
    if not arguments:
        return "quick_gelu" if quick else "gelu"
    if quick:
        raise ValueError(f"quick_gelu = true contradicts {where}.act_kwargs = {arguments}")
    if set(arguments) != {"approximate"} or arguments["approximate"] not in ("none", "tanh"):
        raise ValueError(f"{where}.act_kwargs = {arguments} is not supported")
    return "gelu_tanh" if arguments["approximate"] == "tanh" else "gelu"


def _eps(where: str, options: dict[str, Any]) -> float:
    arguments = group(options, "norm_kwargs")
    if not set(arguments) <= {"eps"}:
        raise ValueError(f"{where}.norm_kwargs = {arguments} is not supported")
    check_numbers(f"{where}.norm_kwargs.", arguments, (), ("eps",))
    return float(arguments.get("eps", 1e-5))


def _native_tower(v: dict[str, Any], quick: bool) -> dict[str, Any]:
    width, layers = v.get("width", 768), v.get("layers", 12)
    if isinstance(layers, (list, tuple)):
        raise ValueError(f"vision_cfg.layers = {layers} is a ResNet, which is not supported")
    pool = _one_of("vision_cfg", v, "pool_type", "tok", ("tok", "avg"))
    return {
        "img_size": v.get("image_size", 224),
        "patch_size": v.get("patch_size", 16),
        "embed_dim": width,
        "depth": layers,
        "num_heads": width // v.get("head_width", 64),
        "mlp_ratio": ratio(int(width * float(v.get("mlp_ratio", 4.0))), width),
        "act_layer": _activation("vision_cfg", quick, v),
        "norm_eps": _eps("vision_cfg", v),
        "init_values": v.get("ls_init_value"),
        "patch_drop_rate": v.get("patch_dropout", 0.0),
        "pre_norm": not v.get("no_ln_pre", False),
        "global_pool": {"tok": "token", "avg": "avg"}[pool],
        "fc_norm": bool(v.get("final_ln_after_pool", False)),
    }


def _timm_tower(v: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Image tower and projection."""
    proj = _one_of("vision_cfg", v, "timm_proj", "linear", ("linear", "none"))
    pool = v.get("timm_pool", "avg")
    kinds = ("", "token", "avg", "avgmax", "max", "map")
    if pool not in kinds:
        raise ValueError(f"vision_cfg.timm_pool must be one of {kinds}, got {pool!r}")
    tower: dict[str, Any] = {
        "timm": v["timm_model_name"].split(".")[0],
        "rebuilt": proj == "none",  # timm then puts the final norm where this pooling has it
        "patch_drop_rate": v.get("patch_dropout", 0.0),
        "drop_path_rate": v.get("timm_drop_path") or 0.0,
    }
    if pool:
        tower["global_pool"] = pool
    return tower, {
        "vision_proj": proj,
        "vision_proj_bias": proj == "linear" and bool(v.get("timm_proj_bias", False)),
    }


def read_tensors(c: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names; ``c`` holds every field of the config.

    Raises:
        ValueError: missing or unexpected weights.
    """
    if tensors and all(n.startswith("module.") for n in tensors):  # saved from DistributedDataParallel
        tensors = {n.removeprefix("module."): t for n, t in tensors.items()}
    trunk = any(n.startswith("visual.trunk.") for n in tensors)
    custom = any(n.startswith("text.") for n in tensors)
    if trunk:
        ours = {f"visual.{n.removeprefix('visual.trunk.')}" for n in tensors if n.startswith("visual.trunk.")}
        weights = [*_timm_weights(c, ours), *_text_weights(c, custom)]
    else:
        weights = [*_native_weights(c), *_text_weights(c, custom)]
    found = read_weights(weights, tensors, _LEFTOVERS.__contains__)
    if not trunk and not c["vision"]["pre_norm"]:
        # open_clip's patch embedding never has a bias.
        kernels = found["visual.patch_embed.proj.weight"]
        found["visual.patch_embed.proj.bias"] = kernels.new_zeros(len(kernels))
    return found


def _timm_weights(c: dict[str, Any], ours: set[str]) -> Iterator[Weight]:
    for name in sorted(ours):
        yield Weight((name,), (f"visual.trunk.{name.removeprefix('visual.')}",))
    if c["vision_proj"] == "linear":
        yield from layer("visual_projection", "visual.head.proj", bias=c["vision_proj_bias"])


def _native_weights(c: dict[str, Any]) -> Iterator[Weight]:
    v = c["vision"]
    yield Weight(("visual.cls_token",), ("visual.class_embedding",), lead=2)
    yield Weight(("visual.pos_embed",), ("visual.positional_embedding",), lead=1)
    yield from layer("visual.patch_embed.proj", "visual.conv1", bias=False)
    if v["pre_norm"]:
        yield from layer("visual.norm_pre", "visual.ln_pre")
    yield from layer("visual.fc_norm" if v["fc_norm"] else "visual.norm", "visual.ln_post")
    yield from _blocks("visual.", "visual.", v)
    yield Weight(("visual_projection.weight",), ("visual.proj",), transposed=True)


def _text_weights(c: dict[str, Any], custom: bool) -> Iterator[Weight]:
    prefix = "text." if custom else ""
    yield from layer("text.token_embedding", f"{prefix}token_embedding", bias=False)
    yield Weight(("text.pos_embed",), (f"{prefix}positional_embedding",), lead=1)
    yield from layer("text.norm", f"{prefix}ln_final")
    yield from _blocks("text.", prefix, c["text"])
    if c["text_proj"] == "linear":
        if c["text_proj_bias"]:
            yield from layer("text_projection", f"{prefix}text_projection")
        else:
            yield Weight(("text_projection.weight",), (f"{prefix}text_projection",), transposed=True)
    yield Weight(("logit_scale",), ("logit_scale",), lead=-1)
    if c["init_logit_bias"] is not None:
        yield Weight(("logit_bias",), ("logit_bias",), lead=-1)


def _blocks(ours: str, theirs: str, c: dict[str, Any]) -> Iterator[Weight]:
    for i in range(c["depth"]):
        a, b = f"{ours}blocks.{i}", f"{theirs}transformer.resblocks.{i}"
        yield from layer(f"{a}.norm1", f"{b}.ln_1")
        for part in ("weight", "bias"):
            yield Weight((f"{a}.attn.qkv.{part}",), (f"{b}.attn.in_proj_{part}",))
        yield from layer(f"{a}.attn.proj", f"{b}.attn.out_proj")
        yield from layer(f"{a}.norm2", f"{b}.ln_2")
        yield from layer(f"{a}.mlp.fc1", f"{b}.mlp.c_fc")
        yield from layer(f"{a}.mlp.fc2", f"{b}.mlp.c_proj")
        if c["init_values"] is not None:
            for k in (1, 2):
                yield Weight((f"{a}.ls{k}.gamma",), (f"{b}.ls_{k}.gamma",))


def write(
    c: dict[str, Any], timm: tuple[str, dict[str, Any]], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``model_cfg``, and the weights in the names of the file.

    Args:
        c: every field of the config.
        timm: the variant of timm nearest to the image tower, and the fields that are not as in it.
        tensors: the weights.

    Raises:
        ValueError: what open_clip cannot express.
    """
    native = _not_native(c, tensors)
    named = [f"vision.{k}={v!r}" for k, v in timm[1].items()] + _not_text(c)
    if native and named:
        raise ValueError(
            f"open_clip cannot express {', '.join(native)}; nor is the image tower timm's {timm[0]}, for"
            f" {', '.join(named)}"
        )
    custom = bool(native)
    config: dict[str, Any] = {
        "embed_dim": c["embed_dim"],
        "vision_cfg": _write_timm(c, timm[0]) if custom else _write_native(c["vision"]),
        "text_cfg": _write_text(c),
        "init_logit_scale": c["init_logit_scale"],
    }
    if custom:
        config["custom_text"] = True
    if "quick_gelu" in (c["text"]["act_layer"], not custom and c["vision"]["act_layer"]):
        config["quick_gelu"] = True
    if c["init_logit_bias"] is not None:
        config["init_logit_bias"] = c["init_logit_bias"]
    text = _text_weights(c, custom)
    if custom:
        ours = {n for n in tensors if n.startswith("visual.")}
        return config, write_weights([*_timm_weights(c, ours), *text], tensors)
    return config, write_weights([*_native_weights(c), *text], tensors)


def _write_native(v: dict[str, Any]) -> dict[str, Any]:
    config = {
        "image_size": one(v["img_size"]),
        "layers": v["depth"],
        "width": v["embed_dim"],
        "head_width": v["embed_dim"] // v["num_heads"],
        "mlp_ratio": v["mlp_ratio"],
        "patch_size": one(v["patch_size"]),
        "patch_dropout": v["patch_drop_rate"],
        "pool_type": {"token": "tok", "avg": "avg"}[v["global_pool"]],
        "no_ln_pre": not v["pre_norm"],
        "final_ln_after_pool": bool(v["fc_norm"]),
        "norm_kwargs": {"eps": v["norm_eps"]},
        "ls_init_value": v["init_values"],
    }
    if v["act_layer"] == "gelu_tanh":
        config["act_kwargs"] = {"approximate": "tanh"}
    return config


def _write_timm(c: dict[str, Any], variant: str) -> dict[str, Any]:
    return {
        "image_size": one(c["vision"]["img_size"]),
        "timm_model_name": variant,
        "timm_model_pretrained": False,
        "timm_pool": c["vision"]["global_pool"],
        "timm_proj": c["vision_proj"],
        "timm_proj_bias": c["vision_proj_bias"],
        "timm_drop_path": c["vision"]["drop_path_rate"],
        "patch_dropout": c["vision"]["patch_drop_rate"],
    }


def _write_text(c: dict[str, Any]) -> dict[str, Any]:
    t = c["text"]
    config = {
        "context_length": t["context_length"],
        "vocab_size": t["vocab_size"],
        "width": t["embed_dim"],
        "heads": t["num_heads"],
        "layers": t["depth"],
        "mlp_ratio": t["mlp_ratio"],
        "ls_init_value": t["init_values"],
        "no_causal_mask": not t["causal"],
        "pool_type": t["pool"],
        "eos_id": t["eos_id"],
        "proj_type": c["text_proj"],
        "proj_bias": c["text_proj_bias"],
        "norm_kwargs": {"eps": t["norm_eps"]},
    }
    if t["act_layer"] == "gelu_tanh":
        config["act_kwargs"] = {"approximate": "tanh"}
    return config


def _differing(options: dict[str, Any], prefix: str, expected: dict[str, Any]) -> list[str]:
    return [f"{prefix}{k}={options[k]!r}" for k, v in expected.items() if options[k] != v]


def _not_native(c: dict[str, Any], tensors: dict[str, Tensor]) -> list[str]:
    v, t = c["vision"], c["text"]
    reasons = _differing(v, "vision.", {
        "in_chans": 3, "class_token": True, "reg_tokens": 0, "distilled": False, "pos_embed": "learn",
        "no_embed_class": False, "qkv_bias": True, "proj_bias": True, "qk_norm": False,
        "scale_attn_norm": False, "scale_mlp_norm": False, "mlp_layer": "mlp", "final_norm": True,
        "dynamic_img_pad": False, "pool_include_prefix": False, "pooler_dim": None,
    })  # fmt: skip
    reasons += _differing(c, "", {"vision_proj": "linear", "vision_proj_bias": False})
    if v["global_pool"] not in ("token", "avg"):
        reasons.append(f"vision.global_pool={v['global_pool']!r}")
    if v["act_layer"] not in ("gelu", "gelu_tanh", "quick_gelu"):
        reasons.append(f"vision.act_layer={v['act_layer']!r}")
    if "quick_gelu" in (v["act_layer"], t["act_layer"]) and v["act_layer"] != t["act_layer"]:
        reasons.append(f"vision.act_layer={v['act_layer']!r} beside text.act_layer={t['act_layer']!r}")
    bias = tensors.get("visual.patch_embed.proj.bias")
    if bias is not None and bool(bias.any()):
        reasons.append("a bias in the patch embedding")
    return reasons + _not_text(c)


def _not_text(c: dict[str, Any]) -> list[str]:
    act = c["text"]["act_layer"]
    return [] if act in ("gelu", "gelu_tanh", "quick_gelu") else [f"text.act_layer={act!r}"]
