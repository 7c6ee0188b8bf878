# SPDX-License-Identifier: Apache-2.0
"""The preprocessing configurations of transformers, timm and open_clip, read and written.

A reader returns the fields of a ``Preprocess``. It refuses keys that it does not know and values that it
cannot honour, and names them: a recipe that is carried out differently costs accuracy silently.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_accel.data.preprocess import Preprocess

Fields = dict[str, Any]

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Pillow's numbers of its filters, as transformers' "resample" has them.
_PIL_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def _refuse(source: str, problem: str) -> ValueError:
    return ValueError(f"{source} preprocessing: {problem}")


def _check_keys(source: str, config: Mapping[str, Any], known: Iterable[str]) -> None:
    if unknown := sorted(set(config) - set(known)):
        raise _refuse(source, f"unknown key{'s' * (len(unknown) > 1)} {', '.join(unknown)}")


def _three(source: str, key: str, value: Any) -> tuple[float, ...]:
    many = value if isinstance(value, (list, tuple)) else [value] * 3
    values = tuple(_real(source, key, v) for v in many)
    if len(values) != 3:
        raise _refuse(source, f"{key} must have 3 values, got {value}")
    return values


def _real(source: str, key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise _refuse(source, f"{key} must be a number, got {value!r}") from None


def _whole(source: str, key: str, value: Any) -> int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or value % 1 != 0 or value < 1:
        raise _refuse(source, f"{key} must be a number of pixels, got {value!r}")
    return int(value)


def _pair(source: str, key: str, value: Any) -> tuple[int, int]:
    values = value if isinstance(value, (list, tuple)) else [value] * 2
    if len(values) != 2:
        raise _refuse(source, f"{key} must be a number or (height, width), got {value}")
    return _whole(source, key, values[0]), _whole(source, key, values[1])


# transformers -----------------------------------------------------------------------------------------

_HF = "transformers"
_BASE = {"do_resize": True, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255}
_BASE |= {"do_normalize": True, "do_convert_rgb": False}
_CLIP = _BASE | {"size": {"shortest_edge": 224}, "crop_size": 224, "resample": 3, "do_center_crop": True}
_CLIP |= {"image_mean": OPENAI_MEAN, "image_std": OPENAI_STD, "do_convert_rgb": True}
_SQUASH = _BASE | {"size": {"height": 224, "width": 224}, "image_mean": HALF, "image_std": HALF}
# The defaults of each processor of transformers 5.
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": _SQUASH | {"resample": 2},
    "DeiT": _SQUASH
    | {"resample": 3, "size": {"height": 256, "width": 256}, "crop_size": 224, "do_center_crop": True},
    "CLIP": _CLIP,
    "Siglip": _SQUASH | {"resample": 3, "do_convert_rgb": True},
    "Bit": _CLIP,
}
_SHORTEST_IF_NUMBER = {"CLIP", "Bit"}  # what a plain number as size means
_HF_NAMES = {"image_processor_type", "feature_extractor_type"}
# Of no effect on the pixels of one RGB image, or only so when unset.
_HF_IGNORED = {"processor_class", "_processor_class", "_valid_processor_keys", "data_format", "device"}
_HF_IGNORED |= {"input_data_format", "return_tensors", "default_to_square", "disable_grouping"}
_HF_MUST_BE_OFF = {"do_pad", "pad_size", "do_flip_channel_order", "do_reduce_labels", "use_square_size"}
_HF_MUST_BE_OFF |= {"crop_pct"}


def read_hf(config: Mapping[str, Any]) -> Fields:
    """Fields of a recipe from transformers' preprocessor_config.json or processor_config.json."""
    if isinstance(inner := config.get("image_processor"), Mapping):  # processor_config.json
        config = inner
    _check_keys(_HF, config, {*_CLIP, *_HF_NAMES, *_HF_IGNORED, *_HF_MUST_BE_OFF})
    for key in sorted(_HF_MUST_BE_OFF):
        if config.get(key):
            raise _refuse(_HF, f"{key} = {config[key]!r} is not supported")
    kind = _hf_kind(config)
    c = _PROCESSORS[kind] | {k: v for k, v in config.items() if v is not None and k in _CLIP}

    resize, to = _hf_size(kind, c["size"]) if c["do_resize"] else ("none", None)
    if c["do_center_crop"]:
        if "crop_size" not in c:
            raise _refuse(_HF, "do_center_crop needs crop_size")
        size = _hf_crop_size(c["crop_size"])
    elif resize == "squash":
        assert to is not None
        size = to
    else:
        raise _refuse(
            _HF, "do_center_crop is off and size is not {height, width}: images would differ in size"
        )
    if c["resample"] not in list(_PIL_FILTERS):
        raise _refuse(_HF, f"resample must be one of {sorted(_PIL_FILTERS)}, got {c['resample']!r}")
    return {
        "size": size,
        "resize": resize,
        "resize_to": None if to == size else to,
        "interpolation": _PIL_FILTERS[c["resample"]],
        "mean": _three(_HF, "image_mean", c["image_mean"]) if c["do_normalize"] else (0.0, 0.0, 0.0),
        "std": _three(_HF, "image_std", c["image_std"]) if c["do_normalize"] else (1.0, 1.0, 1.0),
        "rescale": _real(_HF, "rescale_factor", c["rescale_factor"]) if c["do_rescale"] else 1.0,
        "crop_offset": "floor",
        "alpha": "white" if c["do_convert_rgb"] else "drop",
    }


def _hf_kind(config: Mapping[str, Any]) -> str:
    names = {str(config[k]) for k in _HF_NAMES if config.get(k)}
    kinds = set()
    for name in names:
        kind = name
        for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
            kind = kind.removesuffix(ending)
        kinds.add(kind)
    if len(kinds) != 1 or not kinds <= set(_PROCESSORS):
        supported = ", ".join(f"{k}ImageProcessor" for k in _PROCESSORS)
        got = " and ".join(sorted(names)) or "none"
        raise _refuse(_HF, f"image_processor_type must be one of {supported}, got {got}")
    return kinds.pop()


def _hf_size(kind: str, size: Any) -> tuple[str, tuple[int, int]]:
    if not isinstance(size, Mapping):
        to = _pair(_HF, "size", size)
        return ("shortest" if kind in _SHORTEST_IF_NUMBER and to[0] == to[1] else "squash"), to
    given = {k: v for k, v in size.items() if v is not None}
    if set(given) == {"shortest_edge"}:
        return "shortest", _pair(_HF, "size.shortest_edge", given["shortest_edge"])
    if set(given) == {"height", "width"}:
        return "squash", _pair(_HF, "size", [given["height"], given["width"]])
    raise _refuse(_HF, f"size must have shortest_edge, or height and width, got {dict(size)}")


def _hf_crop_size(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        if set(size) != {"height", "width"}:
            raise _refuse(_HF, f"crop_size must have height and width, got {dict(size)}")
        size = [size["height"], size["width"]]
    return _pair(_HF, "crop_size", size)


def write_hf(p: "Preprocess") -> dict[str, Any]:
    """The recipe as a preprocessor_config.json."""
    to = p.resize_to or p.size
    if p.resize == "longest" or (p.resize == "shortest" and to[0] != to[1]):
        raise _refuse(_HF, f"cannot express resize = {p.resize!r} to {to}")
    crops = p.resize != "squash" or to != p.size
    if crops and p.crop_offset != "floor":
        raise _refuse(_HF, f"cannot express crop_offset = {p.crop_offset!r}")
    if crops and any(p.fill):
        raise _refuse(_HF, f"cannot express fill = {p.fill}")
    squash = {"height": to[0], "width": to[1]}
    numbers = {name: number for number, name in _PIL_FILTERS.items()}
    return {
        "image_processor_type": "CLIPImageProcessor" if crops or p.alpha == "white" else "ViTImageProcessor",
        "do_resize": p.resize != "none",
        "size": {"shortest_edge": to[0]} if p.resize == "shortest" else squash,
        "resample": numbers[p.interpolation],
        "do_center_crop": crops,
        "crop_size": {"height": p.size[0], "width": p.size[1]},
        "do_rescale": p.rescale != 1,
        "rescale_factor": p.rescale,
        "do_normalize": (p.mean, p.std) != ((0, 0, 0), (1, 1, 1)),
        "image_mean": list(p.mean),
        "image_std": list(p.std),
        "do_convert_rgb": p.alpha == "white",
    }


# timm -------------------------------------------------------------------------------------------------

_TIMM = "timm"
# The fields of timm's PretrainedCfg: those that matter here, and the rest.
_TIMM_KEYS = {"input_size", "test_input_size", "interpolation", "crop_pct", "test_crop_pct", "crop_mode"}
_TIMM_KEYS |= {"mean", "std"}
_TIMM_OTHER = {
    *(
        "url",
        "file",
        "state_dict",
        "hf_hub_id",
        "hf_hub_filename",
        "source",
        "architecture",
        "tag",
        "custom_load",
    ),
    *(
        "min_input_size",
        "fixed_input_size",
        "num_classes",
        "label_offset",
        "label_names",
        "label_descriptions",
    ),
    *("pool_size", "test_pool_size", "first_conv", "classifier", "license", "description", "origin_url"),
    *("paper_name", "paper_ids", "notes"),
}


def read_timm(config: Mapping[str, Any], test_size: bool) -> Fields:
    """Fields of a recipe from timm's pretrained_cfg."""
    _check_keys(_TIMM, config, {*_TIMM_KEYS, *_TIMM_OTHER})
    c = {k: v for k, v in config.items() if v is not None}
    if test_size:
        c |= {k: c[f"test_{k}"] for k in ("input_size", "crop_pct") if c.get(f"test_{k}")}
    shape = c.get("input_size", (3, 224, 224))
    if not isinstance(shape, (list, tuple)) or len(shape) != 3 or shape[0] != 3:
        raise _refuse(_TIMM, f"input_size must be (3, height, width), got {shape}")
    size = _pair(_TIMM, "input_size", list(shape[1:]))
    crop_pct = _real(_TIMM, "crop_pct", c.get("crop_pct") or 0.875)
    if not crop_pct > 0:
        raise _refuse(_TIMM, f"crop_pct must be positive, got {crop_pct}")
    to = (math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct))
    mode = c.get("crop_mode") or "center"
    modes = {"center": "shortest", "squash": "squash", "border": "longest"}
    if mode not in list(modes):
        raise _refuse(_TIMM, f"crop_mode must be one of {', '.join(modes)}, got {mode!r}")
    mean = _three(_TIMM, "mean", c.get("mean") or IMAGENET_MEAN)
    return {
        "size": size,
        "resize": modes[mode],
        "resize_to": None if to == size else to,
        "interpolation": c.get("interpolation") or "bicubic",
        "mean": mean,
        "std": _three(_TIMM, "std", c.get("std") or IMAGENET_STD),
        "crop_offset": "round",
        "fill": _timm_border(mean) if mode == "border" else (0, 0, 0),
    }


def _timm_border(mean: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(round(255 * m) for m in mean)


def write_timm(p: "Preprocess") -> dict[str, Any]:
    """The recipe as the preprocessing keys of a pretrained_cfg."""
    _write_torchvision(_TIMM, p)
    if p.resize == "none":
        raise _refuse(_TIMM, "cannot express resize = 'none'")
    if p.fill != (_timm_border(p.mean) if p.resize == "longest" else (0, 0, 0)):
        raise _refuse(_TIMM, f"cannot express fill = {p.fill}")
    return {
        "input_size": [3, *p.size],
        "interpolation": p.interpolation,
        "crop_pct": _crop_pct(p.size, p.resize_to or p.size),
        "crop_mode": {"shortest": "center", "squash": "squash", "longest": "border"}[p.resize],
        "mean": list(p.mean),
        "std": list(p.std),
    }


def _crop_pct(size: tuple[int, int], to: tuple[int, int]) -> float:
    """A short number from which timm's floor(size / crop_pct) gives ``to``."""
    largest = min(s / t for s, t in zip(size, to, strict=True))
    for digits in range(1, 17):
        pct = math.floor(largest * 10**digits) / 10**digits
        if pct > 0 and all(math.floor(s / pct) == t for s, t in zip(size, to, strict=True)):
            return pct
    raise _refuse(_TIMM, f"no crop_pct brings {size} to {to}")


def _write_torchvision(source: str, p: "Preprocess") -> None:
    """Refuse what the transforms of timm and open_clip cannot do."""
    if p.rescale != 1 / 255:
        raise _refuse(source, f"cannot express rescale = {p.rescale}")
    if p.alpha != "drop":
        raise _refuse(source, f"cannot express alpha = {p.alpha!r}")
    exact = p.resize == "squash" and p.resize_to in {None, p.size}
    if p.crop_offset != "round" and not exact:
        raise _refuse(source, f"cannot express crop_offset = {p.crop_offset!r}")


# open_clip --------------------------------------------------------------------------------------------

_OPEN_CLIP = "open_clip"
_OPEN_CLIP_KEYS = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}


def read_open_clip(config: Mapping[str, Any]) -> Fields:
    """Fields of a recipe from open_clip's preprocess_cfg."""
    _check_keys(_OPEN_CLIP, config, _OPEN_CLIP_KEYS)
    c = {k: v for k, v in config.items() if v is not None}
    if c.get("mode", "RGB") != "RGB":
        raise _refuse(_OPEN_CLIP, f"mode must be RGB, got {c['mode']!r}")
    size = _pair(_OPEN_CLIP, "size", c.get("size", 224))
    resize = c.get("resize_mode", "shortest")
    if resize not in ["shortest", "longest", "squash"]:
        raise _refuse(_OPEN_CLIP, f"resize_mode must be shortest, longest or squash, got {resize!r}")
    interpolation = c.get("interpolation", "bicubic")
    if interpolation not in ["bicubic", "bilinear", "random"]:
        raise _refuse(_OPEN_CLIP, f"interpolation must be bicubic, bilinear or random, got {interpolation!r}")
    # open_clip evaluates "random" as bicubic, and forgets the setting when a "shortest" size is not square.
    if interpolation == "random" or (resize == "shortest" and size[0] != size[1]):
        interpolation = "bicubic"
    fill = c.get("fill_color", 0)
    return {
        "size": size,
        "resize": resize,
        "interpolation": interpolation,
        "mean": _three(_OPEN_CLIP, "mean", c.get("mean", OPENAI_MEAN)),
        "std": _three(_OPEN_CLIP, "std", c.get("std", OPENAI_STD)),
        "crop_offset": "round",
        "fill": (int(fill),) * 3 if resize == "longest" else (0, 0, 0),
    }


def write_open_clip(p: "Preprocess") -> dict[str, Any]:
    """The recipe as a preprocess_cfg."""
    _write_torchvision(_OPEN_CLIP, p)
    square = p.size[0] == p.size[1]
    if p.resize_to not in {None, p.size} or p.resize == "none":
        raise _refuse(_OPEN_CLIP, f"cannot express resize = {p.resize!r} to {p.resize_to}")
    allowed = {"bicubic"} if p.resize == "shortest" and not square else {"bicubic", "bilinear"}
    if p.interpolation not in allowed:
        raise _refuse(_OPEN_CLIP, f"cannot express interpolation = {p.interpolation!r}")
    if len(set(p.fill)) > 1 or (p.resize != "longest" and any(p.fill)):
        raise _refuse(_OPEN_CLIP, f"cannot express fill = {p.fill}")
    return {
        "size": p.size[0] if square else list(p.size),
        "mode": "RGB",
        "mean": list(p.mean),
        "std": list(p.std),
        "interpolation": p.interpolation,
        "resize_mode": p.resize,
        "fill_color": p.fill[0],
    }
