# SPDX-License-Identifier: Apache-2.0
"""Hugging Face layout of ViT, DeiT, DINOv2 and DINOv2 with registers: configs and weight names, both ways.

A DeiT with one head is a ViT with one register token, which has a position.

The names are those of the files. transformers 5 renames the weights in memory, and back when it saves;
a state dict saved without it has the new names, which are read too.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vision_accel.io._values import check_numbers
from vision_accel.io.tensors import describe

# Model type -> its image processor where preprocessor_config.json names none.
PROCESSORS = {
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "hardswish": "hard_swish",
    **{name: name for name in ("relu", "relu6", "leaky_relu", "mish", "sigmoid", "tanh")},
}
WRITTEN_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "hard_swish": "hardswish"}
# What transformers assumes where config.json is silent.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "mlp_ratio": 4, "hidden_act": "gelu", "image_size": 224, "num_channels": 3, "qkv_bias": True,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0,
    "use_swiglu_ffn": False, "num_register_tokens": 4, "layerscale_value": 1.0, "pooler_act": "tanh",
}  # fmt: skip
# New name -> name in the file.
_RENAMED = [
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.(attention\.)?(q|query)(_proj)?\.", ".attention.attention.query."),
    (r"\.attention\.(attention\.)?(k|key)(_proj)?\.", ".attention.attention.key."),
    (r"\.attention\.(attention\.)?(v|value)(_proj)?\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
]
_RENAMED_VIT = [(r"\.mlp\.fc1\.", ".intermediate.dense."), (r"\.mlp\.fc2\.", ".output.dense.")]


def check(config: dict[str, Any], others: Iterable[str] = ()) -> None:
    """Raise unless this is a model type that is read here; ``others`` are read elsewhere."""
    if config["model_type"] not in list(PROCESSORS):  # a list: the value may be of any kind
        known = ", ".join([*PROCESSORS, *others])
        raise ValueError(f"model_type {config['model_type']!r} is not supported; supported are {known}")


def read(
    config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor], dict[int, str] | None]:
    """Config fields, weights in our names, and labels.

    Raises:
        ValueError: missing or unexpected weights, or an option that cannot be honoured.
    """
    dino = config["model_type"].startswith("dinov2")
    tensors = _file_names(tensors, config["model_type"])
    fields = _read_config(config, tensors, dino)
    found, used, missing = {}, set(), []
    for ours, names in _names(fields, dino):
        absent = [n for n in names if n not in tensors]
        missing += absent
        used.update(names)
        if not absent:
            parts = [tensors[n] for n in names]
            found[ours] = parts[0] if len(parts) == 1 else torch.cat(parts)
    # The mask token serves pre-training only.
    unexpected = sorted(set(tensors) - used - {"embeddings.mask_token"})
    if missing or unexpected:
        raise ValueError(describe(missing, unexpected))
    if fields.get("no_embed_class"):
        # The class token always has its own position, registers have none: it is folded into the token.
        found["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
        found["pos_embed"] = found["pos_embed"][:, 1:]
    return fields, found, _read_labels(config, fields["num_classes"])


def _file_names(tensors: dict[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """The weights without the name of the base model in front, new names changed back."""
    dino = model_type.startswith("dinov2")
    rules = [(re.compile(a), b) for a, b in _RENAMED + ([] if dino else _RENAMED_VIT)]
    renamed = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(f"{model_type}.")
        for pattern, replacement in rules:
            short = pattern.sub(replacement, short)
        renamed[short] = tensor
    for name in [n for n in renamed if ".mlp.gate_proj." in n]:
        up = name.replace("gate_proj", "up_proj")
        if up in renamed:
            both = torch.cat([renamed.pop(name), renamed.pop(up)])
            renamed[name.replace("gate_proj", "weights_in")] = both
    return {n.replace(".mlp.down_proj.", ".mlp.weights_out."): t for n, t in renamed.items()}


def _read_config(config: dict[str, Any], tensors: dict[str, Tensor], dino: bool) -> dict[str, Any]:
    c = _DEFAULTS | config
    patch, eps = (14, 1e-6) if dino else (16, 1e-12)
    check_sizes(c)
    width = c["hidden_size"]
    if c.get("head_dim") not in {None, width // c["num_attention_heads"]}:
        raise ValueError(f"head_dim {c['head_dim']} is not hidden_size / num_attention_heads")
    if c["hidden_act"] not in list(ACTIVATIONS):  # a list: the value may be of any kind
        raise ValueError(
            f"hidden_act {c['hidden_act']!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
        )
    deit = c["model_type"] == "deit"
    distilled = deit and "cls_classifier.weight" in tensors
    head = tensors.get("cls_classifier.weight" if distilled else "classifier.weight")
    pooler = tensors.get("pooler.dense.weight")
    if pooler is not None and c["pooler_act"] != "tanh":
        raise ValueError(f"pooler_act {c['pooler_act']!r} is not supported, only tanh")
    fields = {
        "img_size": c["image_size"],
        "patch_size": c.get("patch_size", patch),
        "in_chans": c["num_channels"],
        "num_classes": 0 if head is None else head.shape[0],
        "embed_dim": width,
        "depth": c["num_hidden_layers"],
        "num_heads": c["num_attention_heads"],
        "mlp_ratio": ratio(c["intermediate_size"], width),
        "act_layer": ACTIVATIONS[c["hidden_act"]],
        "norm_eps": c.get("layer_norm_eps", eps),
        "qkv_bias": c["qkv_bias"],
        "pos_drop_rate": c["hidden_dropout_prob"],
        "proj_drop_rate": c["hidden_dropout_prob"],
        "attn_drop_rate": c["attention_probs_dropout_prob"],
        "pos_embed_antialias": False,
        "reg_tokens": int(deit and not distilled),
        "distilled": distilled,
        "pooler_dim": None if pooler is None else pooler.shape[0],
    }
    if dino:
        if type(c["mlp_ratio"]) not in (int, float):
            raise ValueError(f"mlp_ratio must be a number, got {c['mlp_ratio']!r}")
        registers = c["num_register_tokens"] if c["model_type"] == "dinov2_with_registers" else 0
        fields |= {
            "mlp_ratio": ratio(int(width * c["mlp_ratio"]), width),
            "init_values": c["layerscale_value"],
            "reg_tokens": registers,
            "no_embed_class": registers > 0,
            "drop_path_rate": c["drop_path_rate"],
            "global_pool": "token" if head is None else "token_avg",
            "pos_embed_antialias": registers > 0,
            "dynamic_img_size": True,
        }
        if c["use_swiglu_ffn"]:
            hidden = _swiglu_dim(int(width * c["mlp_ratio"]))
            fields |= {"mlp_layer": "swiglu", "act_layer": "silu", "mlp_ratio": ratio(2 * hidden, width)}
    return fields


_WHOLE = ("image_size", "patch_size", "num_channels", "max_position_embeddings", "vocab_size")
_REAL = ("layer_norm_eps", "attention_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob")


def check_sizes(c: dict[str, Any], where: str = "") -> None:
    """Raise unless the sizes of a tower are numbers that can be computed with."""
    for name, least in (("hidden_size", 1), ("num_hidden_layers", 0), ("num_attention_heads", 1),
                        ("intermediate_size", 1)):  # fmt: skip
        if type(c[name]) is not int or c[name] < least:
            raise ValueError(f"{where}{name} must be a whole number of at least {least}, got {c[name]!r}")
    check_numbers(where, c, _WHOLE, _REAL)


def ratio(hidden: int, width: int) -> float:
    """A number r for which ``int(width * r)`` is ``hidden``, in spite of rounding."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def _swiglu_dim(hidden: int) -> int:
    """Width of gate and value in DINOv2: two thirds, rounded up to a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def _read_labels(config: dict[str, Any], num_classes: int) -> dict[int, str] | None:
    names = config.get("id2label")
    if not num_classes or not isinstance(names, dict):
        return None
    strange = [i for i in names if not i.isdecimal()]
    if strange:
        raise ValueError(f"id2label must map class numbers to names, got the key {strange[0]!r}")
    labels = {int(i): str(name) for i, name in names.items()}
    if len(labels) != num_classes:
        raise ValueError(f"id2label names {len(labels)} classes, the classifier has {num_classes}")
    return None if labels == _default_labels(num_classes) else labels


def _default_labels(count: int) -> dict[int, str]:
    return {i: f"LABEL_{i}" for i in range(count)}


def _names(c: dict[str, Any], dino: bool) -> Iterator[tuple[str, list[str]]]:
    """Our name of each weight, and its name in the file, or its three names for a packed qkv."""
    yield "cls_token", ["embeddings.cls_token"]
    yield "pos_embed", ["embeddings.position_embeddings"]
    if c["distilled"]:
        yield "dist_token", ["embeddings.distillation_token"]
    elif c["reg_tokens"]:
        yield "reg_token", [f"embeddings.{'register_tokens' if dino else 'distillation_token'}"]
    modules = [("patch_embed.proj", ["embeddings.patch_embeddings.projection"])]
    for i in range(c["depth"]):
        ours, theirs = f"blocks.{i}.", f"encoder.layer.{i}."
        qkv = [f"{theirs}attention.attention.{part}" for part in ("query", "key", "value")]
        modules += [(f"{ours}attn.qkv", qkv), (f"{ours}attn.proj", [f"{theirs}attention.output.dense"])]
        if dino:
            swiglu = c.get("mlp_layer") == "swiglu"
            fc = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
            pairs = [
                ("norm1", "norm1"),
                ("norm2", "norm2"),
                *zip(("mlp.fc1", "mlp.fc2"), (f"mlp.{n}" for n in fc), strict=True),
            ]
            yield f"{ours}ls1.gamma", [f"{theirs}layer_scale1.lambda1"]
            yield f"{ours}ls2.gamma", [f"{theirs}layer_scale2.lambda1"]
        else:
            pairs = [("norm1", "layernorm_before"), ("norm2", "layernorm_after")]
            pairs += [("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense")]
        modules += [(ours + a, [theirs + b]) for a, b in pairs]
    modules.append(("norm", ["layernorm"]))
    if c["pooler_dim"]:
        modules.append(("pooler", ["pooler.dense"]))
    if c["num_classes"]:
        modules.append(("head", ["cls_classifier" if c["distilled"] else "classifier"]))
    if c["distilled"]:
        modules.append(("head_dist", ["distillation_classifier"]))
    for ours, parts in modules:
        yield f"{ours}.weight", [f"{p}.weight" for p in parts]
        if c["qkv_bias"] or not ours.endswith(".qkv"):
            yield f"{ours}.bias", [f"{p}.bias" for p in parts]


def write(
    c: dict[str, Any], tensors: dict[str, Tensor], labels: dict[int, str] | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json, and the weights in the names of the file; ``c`` holds every field of the config.

    Raises:
        ValueError: what Hugging Face's classes cannot express.
    """
    plain = c["init_values"] is None and not c["no_embed_class"]
    deit = c["distilled"] or (c["reg_tokens"] == 1 and plain)
    dino = not deit and (c["reg_tokens"] > 0 or c["init_values"] is not None)
    model_type = "deit" if deit else "vit" if not dino else "dinov2"
    model_type += "_with_registers" if dino and c["reg_tokens"] else ""
    reasons = _not_expressible(c, dino)
    if reasons:
        raise ValueError(
            f"Hugging Face's {model_type} cannot express {', '.join(reasons)}; use layout='timm'"
        )
    class_name = {"vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2"}.get(model_type, "Dinov2WithRegisters")
    class_name += "ForImageClassification" if c["num_classes"] else "Model"
    class_name += "WithTeacher" if c["distilled"] else ""
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "image_size": one(c["img_size"]),
        "patch_size": one(c["patch_size"]),
        "num_channels": c["in_chans"],
        "hidden_size": c["embed_dim"],
        "num_hidden_layers": c["depth"],
        "num_attention_heads": c["num_heads"],
        "hidden_act": WRITTEN_ACTIVATIONS.get(c["act_layer"], c["act_layer"]),
        "layer_norm_eps": c["norm_eps"],
        "qkv_bias": c["qkv_bias"],
        "hidden_dropout_prob": c["proj_drop_rate"],
        "attention_probs_dropout_prob": c["attn_drop_rate"],
        "initializer_range": 0.02,
        "dtype": str(tensors["cls_token"].dtype).removeprefix("torch."),
    }
    if dino:
        config |= {
            "mlp_ratio": _dino_ratio(c),
            "use_swiglu_ffn": c["mlp_layer"] == "swiglu",
            "layerscale_value": c["init_values"],
            "drop_path_rate": c["drop_path_rate"],
        }
        if c["reg_tokens"]:
            config["num_register_tokens"] = c["reg_tokens"]
    else:
        config |= {
            "intermediate_size": int(c["embed_dim"] * c["mlp_ratio"]),
            "encoder_stride": c["patch_size"][0],
        }
        if c["pooler_dim"]:
            config |= {"pooler_output_size": c["pooler_dim"], "pooler_act": "tanh"}
    if c["num_classes"]:
        named = {i: (labels or {}).get(i, name) for i, name in _default_labels(c["num_classes"]).items()}
        config["id2label"] = {str(i): name for i, name in named.items()}
        config["label2id"] = {name: i for i, name in named.items()}
    return config, _write_tensors(c, dino, model_type, tensors)


def _write_tensors(
    c: dict[str, Any], dino: bool, model_type: str, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    tensors = dict(tensors)
    if c["no_embed_class"]:
        none = torch.zeros_like(tensors["cls_token"])
        tensors["pos_embed"] = torch.cat([none, tensors["pos_embed"]], dim=1)
    found = {}
    if dino:
        found["embeddings.mask_token"] = torch.zeros_like(tensors["cls_token"][0])
    for ours, names in _names(c, dino):
        found.update(zip(names, tensors[ours].chunk(len(names)), strict=True))
    if not c["num_classes"]:
        return found
    return {n if "classifier." in n else f"{model_type}.{n}": t for n, t in found.items()}


def one(pair: tuple[int, int]) -> int | list[int]:
    """A size as one number where its two are equal."""
    return pair[0] if pair[0] == pair[1] else list(pair)


def _dino_ratio(c: dict[str, Any]) -> int | None:
    """DINOv2's integer MLP ratio, None if there is none that gives this MLP."""
    width, hidden = c["embed_dim"], int(c["embed_dim"] * c["mlp_ratio"])
    for r in range(1, 65):
        if hidden == (2 * _swiglu_dim(width * r) if c["mlp_layer"] == "swiglu" else width * r):
            return r
    return None


def _not_expressible(c: dict[str, Any], dino: bool) -> list[str]:
    expected: dict[str, Any] = {
        "class_token": True,
        "pos_embed": "learn",
        "proj_bias": True,
        "qk_norm": False,
        "scale_attn_norm": False,
        "scale_mlp_norm": False,
        "init_values": c["init_values"] if dino else None,
        "pre_norm": False,
        "final_norm": True,
        "dynamic_img_pad": False,
        "global_pool": "token_avg" if dino and c["num_classes"] else "token",
        "mlp_layer": c["mlp_layer"] if dino else "mlp",
    }
    if c["mlp_layer"] == "swiglu":
        expected["act_layer"] = "silu"
    reasons = [f"{name}={c[name]!r}" for name, value in expected.items() if c[name] != value]
    if c["fc_norm"]:
        reasons.append("fc_norm=True")
    if dino and c["init_values"] is None:
        reasons.append("register tokens without layer scale")
    if dino and c["reg_tokens"] and not c["no_embed_class"]:
        reasons.append("position embeddings of register tokens")
    if c["distilled"] and not c["num_classes"]:
        reasons.append("distillation without heads")
    if c["pooler_dim"] and (dino or c["num_classes"]):
        reasons.append("a pooler together with a head" if c["num_classes"] else "a pooler")
    if dino and _dino_ratio(c) is None:
        reasons.append(f"mlp_ratio={c['mlp_ratio']!r}")
    return reasons
