# SPDX-License-Identifier: Apache-2.0
"""timm's layout of its VisionTransformer, plain or distilled. Our names of the weights are timm's."""

from typing import Any

from torch import Tensor

from vision_accel.io._values import check_numbers, group

# Arguments of timm's class that only say how to draw the first weights.
_IGNORED = {"weight_init", "fix_init", "strict_img_size", "use_naflex"}
_ACTIVATIONS = {"swish": "silu", "hardswish": "hard_swish"}
# Fields of ours with no place in timm.
_OURS = {"norm_eps", "mlp_layer", "distilled", "pooler_dim", "pos_embed_antialias"}


def read(
    config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[str, dict[str, Any], dict[str, Tensor], dict[int, str] | None, dict[str, Any]]:
    """Variant, the config fields that differ from it, weights, labels, and pretrained_cfg.

    Raises:
        ValueError: an option that cannot be honoured.
    """
    pretrained = group(config, "pretrained_cfg") or dict(config)  # older files have one level
    args = group(config, "model_args")
    check_numbers("model_args.", args, ("img_size", "patch_size"))
    fields: dict[str, Any] = {}
    size = pretrained.get("input_size") or [3, 224, 224]
    fields["in_chans"] = size[0]
    if pretrained.get("fixed_input_size", True):
        fields["img_size"] = size[1:]
    for key in ("num_classes", "global_pool"):
        value = config.get(key, pretrained.get(key))
        if value is not None:
            fields[key] = value
    norm = args.pop("norm_layer", None)
    if norm is not None:
        if norm.replace("_", "").lower() not in {"layernorm", "layernormfp32"}:
            raise ValueError(f"norm_layer {norm!r} is not supported, only layernorm")
        fields["norm_eps"] = 1e-6  # the variant's own eps is lost when timm is given a norm layer by name
    if "act_layer" in args:
        args["act_layer"] = _ACTIVATIONS.get(args["act_layer"], args["act_layer"])
    if not args.get("attn_layer"):
        args.pop("attn_layer", None)
    if args.get("init_values") == 0:
        args["init_values"] = None
    fields |= {k: v for k, v in args.items() if k not in _IGNORED}

    tensors = dict(tensors)
    offset = pretrained.get("label_offset") or 0
    if offset:  # extra background classes, which timm cuts off when it loads
        for key in [k for k in tensors if k.startswith(("head.", "head_dist."))]:
            tensors[key] = tensors[key][offset:]
    labels = config.get("label_names") or pretrained.get("label_names")
    if isinstance(labels, (list, tuple)):
        labels = dict(enumerate(labels))
    named = {int(i): str(name) for i, name in labels.items()} if labels else None
    return str(config["architecture"]).split(".")[0], fields, tensors, named, pretrained


def write(
    variant: str | None,
    changes: dict[str, Any],
    tensors: dict[str, Tensor],
    labels: dict[int, str] | None,
    preprocess: dict[str, Any] | None,
) -> dict[str, Any]:
    """config.json of a variant with some fields changed.

    Raises:
        ValueError: what timm's class cannot express.
    """
    reasons = [f"{k}={v!r}" for k, v in changes.items() if k in _OURS - {"pos_embed_antialias"}]
    if changes.get("global_pool") == "token_avg":
        reasons.append("global_pool='token_avg'")
    if variant is None or reasons:
        hint = "; load it with norm_eps=1e-6 if that will do" if "norm_eps" in changes else ""
        raise ValueError(f"timm cannot express {', '.join(reasons)}{hint}")
    args = {k: list(v) if isinstance(v, tuple) else v for k, v in changes.items() if k not in _OURS}
    if args.get("init_values") == 0:
        args["init_values"] = 1e-5  # 0 would mean no layer scale; its weights are in the file
    head, width = tensors.get("head.weight"), tensors["patch_embed.proj.weight"].shape[0]
    num_classes = 0 if head is None else head.shape[0]
    args["num_classes"] = num_classes
    dynamic = args.get("dynamic_img_size", False)
    nominal = [tensors["patch_embed.proj.weight"].shape[1], *args["img_size"]]
    pretrained = {
        **(preprocess or {}),
        "custom_load": False,
        "input_size": preprocess["input_size"] if dynamic and preprocess else nominal,
        "fixed_input_size": not dynamic,
        "num_classes": num_classes,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if "dist_token" in tensors else "head",
    }
    config = {
        "architecture": variant,
        "num_classes": num_classes,
        "num_features": width,
        "global_pool": args["global_pool"],
        "model_args": args,
        "pretrained_cfg": pretrained,
    }
    if labels:
        dense = sorted(labels) == list(range(len(labels)))
        config["label_names"] = (
            [labels[i] for i in sorted(labels)] if dense else {str(i): n for i, n in labels.items()}
        )
    return config
