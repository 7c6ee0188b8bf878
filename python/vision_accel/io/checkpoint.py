# SPDX-License-Identifier: Apache-2.0
"""Reads a checkpoint of whatever layout into one form, and writes it back."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from vision_accel.io import autoencoder, hf_clip, hf_vit, open_clip, timm_vit
from vision_accel.io._values import group
from vision_accel.io.files import read_json, write_json, written_aside
from vision_accel.io.tensors import HF_WEIGHTS, SAFETENSORS, read_file, read_tensors, write_tensors

LAYOUTS = ("hf", "timm", "open_clip", "diffusers", "ldm")
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
TOKENIZER_OPTIONS = "open_clip"  # not a file: the tokenizer's part of open_clip_config.json, as JSON
_HF_PROCESSORS = ("preprocessor_config.json", "processor_config.json")

# What counts layers in the configs of all layouts.
_COUNTS = ("num_hidden_layers", "depth", "layers", "layers_per_block", "block_out_channels")

_T = TypeVar("_T")


@dataclass
class Checkpoint:
    """A checkpoint in our terms.

    Attributes:
        model: name of the model's file in ``vision_accel.models``.
        layout: where it comes from or goes to, one of LAYOUTS.
        config: fields of the model's config, in our names.
        tensors: the weights, in our names.
        variant: the known variant that ``config`` changes; None: the default.
        labels: class index -> name.
        preprocess: how images are prepared, in the layout's own words; None if it does not say.
        timm: to write a CLIP, the variant of timm nearest to its image tower, and what differs.
        tokenizer: the files of the tokenizer, by name.
    """

    model: str
    layout: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    variant: str | None = None
    labels: dict[int, str] | None = None
    preprocess: dict[str, Any] | None = None
    timm: tuple[str, dict[str, Any]] | None = None
    tokenizer: dict[str, bytes] = field(default_factory=dict)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read a directory, or a single file of LDM, finding out its layout.

    A directory of a diffusers pipeline stands for the autoencoder in its ``vae``, and a file of weights in a
    directory of diffusers for that directory.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an unknown layout, a damaged file, missing or unexpected weights, or an option that
            cannot be honoured; the message names it.
    """
    if directory.name in autoencoder.WEIGHTS and (directory.parent / "config.json").is_file():
        directory = directory.parent
    file = _single_file(directory)
    if file is not None:
        return _located(file, lambda: _read_ldm(file))
    if not (directory / "config.json").is_file() and (directory / "vae").is_dir():
        directory = directory / "vae"
    has_open_clip = (directory / open_clip.CONFIG).is_file()
    if has_open_clip and not _is_hf_clip(directory):
        return _located(directory, lambda: _read_open_clip(directory))
    config = _read_config(directory)
    if "model_type" in config:
        if has_open_clip:
            _located(directory, lambda: _check_same_activation(directory, config))
        return _located(directory, lambda: _read_hf(directory, config))
    if "architecture" in config:
        return _located(directory, lambda: _read_timm(directory, config))
    if config.get("_class_name") == "AutoencoderKL":
        return _located(directory, lambda: _read_diffusers(directory, config))
    raise ValueError(
        f"{directory / 'config.json'} is of no known layout: it has neither model_type (Hugging Face) "
        f"nor architecture (timm) nor _class_name AutoencoderKL (diffusers), "
        f"but {', '.join(sorted(config)) or 'nothing'}"
    )


def _located(directory: Path, read: Callable[[], _T]) -> _T:
    """What ``read`` returns; its errors name the directory."""
    try:
        return read()
    except (ValueError, TypeError, AttributeError) as e:  # the latter two: a value of the wrong kind
        raise ValueError(str(e) if str(directory) in str(e) else f"{directory}: {e}") from e
    except KeyError as e:
        raise ValueError(f"{directory}: the config has no {e}") from e


def _enough(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights; a ValueError if there are fewer than layers: building these could take for ever."""
    for key, value in config.items():
        if isinstance(value, dict):
            _enough(value, tensors)
        count = len(value) if isinstance(value, list) else value
        if key in _COUNTS and isinstance(count, int) and count > len(tensors):
            raise ValueError(f"the config says {key} {count}, but there are only {len(tensors)} weights")
    return tensors


def _read_hf(directory: Path, config: dict[str, Any]) -> Checkpoint:
    kind = config["model_type"]
    if kind in list(hf_clip.PROCESSORS):  # a list: the value may be of any kind
        fields, tensors = hf_clip.read(config, _enough(config, read_tensors(directory)))
        processor = _read_processor(directory, hf_clip.PROCESSORS[kind])
        return Checkpoint(
            "clip", "hf", fields, tensors, preprocess=processor, tokenizer=_read_tokenizer(directory)
        )
    hf_vit.check(config, hf_clip.PROCESSORS)
    fields, tensors, labels = hf_vit.read(config, _enough(config, read_tensors(directory)))
    processor = _read_processor(directory, hf_vit.PROCESSORS[kind])
    return Checkpoint("vit", "hf", fields, tensors, None, labels, processor)


def _read_timm(directory: Path, config: dict[str, Any]) -> Checkpoint:
    variant, fields, tensors, labels, pretrained = timm_vit.read(
        config, _enough(config, read_tensors(directory))
    )
    return Checkpoint("vit", "timm", fields, tensors, variant, labels, pretrained)


def _read_diffusers(directory: Path, config: dict[str, Any]) -> Checkpoint:
    tensors = _enough(config, read_tensors(directory, whole=autoencoder.WEIGHTS))
    fields, tensors = autoencoder.read_diffusers(config, tensors)
    return Checkpoint("autoencoderkl", "diffusers", fields, tensors)


def _read_ldm(file: Path) -> Checkpoint:
    return Checkpoint("autoencoderkl", "ldm", *autoencoder.read_ldm(read_file(file)))


def _single_file(path: Path) -> Path | None:
    """The weights where there is nothing else: a file, or our own name of one in a directory."""
    if path.is_file():
        return path
    named = path / autoencoder.LDM_FILE
    return named if named.is_file() and not (path / "config.json").is_file() else None


def _read_open_clip(directory: Path) -> Checkpoint:
    config = read_json(directory / open_clip.CONFIG)
    if not isinstance(config.get("model_cfg"), dict):
        raise ValueError(f"{open_clip.CONFIG} has no model_cfg")
    fields = open_clip.read_config(config["model_cfg"])
    tensors = _enough(config, read_tensors(directory, open_clip.WEIGHTS))
    size = (config["model_cfg"].get("vision_cfg") or {}).get("image_size", 224)
    recipe = {"size": size} | group(config, "preprocess_cfg")
    tokenizer = _read_tokenizer(directory)
    text = config["model_cfg"].get("text_cfg") or {}
    tokenizer[TOKENIZER_OPTIONS] = json.dumps(
        {k: text[k] for k in ("hf_tokenizer_name", "tokenizer_kwargs") if text.get(k)}
    ).encode()
    return Checkpoint("clip", "open_clip", fields, tensors, preprocess=recipe, tokenizer=tokenizer)


def _is_hf_clip(directory: Path) -> bool:
    """Whether Hugging Face's files of a CLIP are there, too."""
    config = directory / "config.json"
    if not config.is_file() or read_json(config).get("model_type") not in list(hf_clip.PROCESSORS):
        return False
    return any((directory / name).is_file() for name in HF_WEIGHTS)


def _check_same_activation(directory: Path, config: dict[str, Any]) -> None:
    """A directory with both layouts must mean one model."""
    quick = bool((read_json(directory / open_clip.CONFIG).get("model_cfg") or {}).get("quick_gelu", False))
    act = (config.get("text_config") or {}).get("hidden_act", "quick_gelu")
    if config["model_type"] == "clip" and quick != (act == "quick_gelu"):
        raise ValueError(
            f"config.json says hidden_act {act!r}, but {open_clip.CONFIG} says quick_gelu {quick}: the files"
            " contradict each other"
        )


def _read_tokenizer(directory: Path) -> dict[str, bytes]:
    return {n: (directory / n).read_bytes() for n in TOKENIZER_FILES if (directory / n).is_file()}


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a directory, whole or not at all.

    Raises:
        ValueError: the layout cannot express the config; the message lists why.
        OSError: it cannot be written.
    """
    if checkpoint.layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {checkpoint.layout!r}")
    c = checkpoint
    if (c.model == "autoencoderkl") != (c.layout in ("diffusers", "ldm")):
        raise ValueError(f"the layout {c.layout!r} is for another kind of model")
    if c.model == "autoencoderkl":
        _write_autoencoder(directory, c)
        return
    if c.model == "clip":
        _write_clip(directory, c)
        return
    if c.layout == "open_clip":
        raise ValueError("layout 'open_clip' is for CLIP models; use 'hf' or 'timm'")
    if c.layout == "hf":
        config, tensors = hf_vit.write(c.config, c.tensors, c.labels)
    else:
        config, tensors = timm_vit.write(c.variant, c.config, c.tensors, c.labels, c.preprocess), c.tensors
    with written_aside(directory) as aside:
        write_tensors(aside / SAFETENSORS, tensors)
        if c.layout == "hf" and c.preprocess is not None:
            write_json(aside / _HF_PROCESSORS[0], c.preprocess)
        write_json(aside / "config.json", config)


def _write_autoencoder(directory: Path, c: Checkpoint) -> None:
    single = c.layout == "ldm"
    tensors = autoencoder.write_ldm(c.config, c.tensors) if single else c.tensors
    with written_aside(directory) as aside:
        write_tensors(aside / (autoencoder.LDM_FILE if single else autoencoder.WEIGHTS[0]), tensors)
        if not single:
            write_json(aside / "config.json", autoencoder.write_diffusers(c.config))


def _write_clip(directory: Path, c: Checkpoint) -> None:
    if c.layout == "hf":
        config, tensors = hf_clip.write(c.config, c.tensors)
        weights, name = SAFETENSORS, "config.json"
    else:
        assert c.timm is not None
        model, tensors = open_clip.write(c.config, c.timm, c.tensors)
        recipe = {k: v for k, v in (c.preprocess or {}).items() if k not in ("size", "mode")}
        options = json.loads(c.tokenizer.get(TOKENIZER_OPTIONS, b"{}"))
        model["text_cfg"] |= options
        config = {"model_cfg": model, "preprocess_cfg": recipe}
        weights, name = open_clip.WEIGHTS[0], open_clip.CONFIG
    with written_aside(directory) as aside:
        write_tensors(aside / weights, tensors)
        if c.layout == "hf" and c.preprocess is not None:
            write_json(aside / _HF_PROCESSORS[0], c.preprocess)
        for file, content in c.tokenizer.items():
            if file != TOKENIZER_OPTIONS:
                (aside / file).write_bytes(content)
        write_json(aside / name, config)


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    if not file.is_file():
        names = sorted(f.name for f in directory.iterdir())
        held = f"it holds {', '.join(names[:10])}" if names else "it is empty"
        raise FileNotFoundError(f"no config.json in {directory}: {held}")
    return read_json(file)


def _read_processor(directory: Path, default: str) -> dict[str, Any] | None:
    for name in _HF_PROCESSORS:
        if (directory / name).is_file():
            value = read_json(directory / name)
            nested = value.get("image_processor")
            value = nested if isinstance(nested, dict) else value
            if not {"image_processor_type", "feature_extractor_type"} & set(value):
                # An old file; transformers then goes by the model.
                value["image_processor_type"] = default
            return value
    return None
