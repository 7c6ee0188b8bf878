# SPDX-License-Identifier: Apache-2.0
"""Reads a checkpoint of whatever layout into one form, and writes it back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vision_accel.io import hf_vit, timm_vit
from vision_accel.io.files import read_json, write_json, written_aside
from vision_accel.io.tensors import SAFETENSORS, read_tensors, write_tensors

LAYOUTS = ("hf", "timm")
_HF_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


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
    """

    model: str
    layout: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    variant: str | None = None
    labels: dict[int, str] | None = None
    preprocess: dict[str, Any] | None = None


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read a directory, finding out its layout.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an unknown layout, a damaged file, missing or unexpected weights, or an option that
            cannot be honoured; the message names it.
    """
    config = _read_config(directory)
    try:
        if "model_type" in config:
            hf_vit.check(config)
            fields, tensors, labels = hf_vit.read(config, read_tensors(directory))
            return Checkpoint(
                "vit", "hf", fields, tensors, None, labels, _read_processor(directory, config["model_type"])
            )
        if "architecture" in config:
            variant, fields, tensors, labels, pretrained = timm_vit.read(config, read_tensors(directory))
            return Checkpoint("vit", "timm", fields, tensors, variant, labels, pretrained)
    except (ValueError, TypeError, AttributeError) as e:  # the latter two: a value of the wrong kind
        raise ValueError(str(e) if str(directory) in str(e) else f"{directory}: {e}") from e
    raise ValueError(
        f"{directory / 'config.json'} is of no known layout: it has neither model_type (Hugging Face) "
        f"nor architecture (timm), but {', '.join(sorted(config)) or 'nothing'}"
    )


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a directory, whole or not at all.

    Raises:
        ValueError: the layout cannot express the config; the message lists why.
        OSError: it cannot be written.
    """
    if checkpoint.layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {checkpoint.layout!r}")
    c = checkpoint
    if c.layout == "hf":
        config, tensors = hf_vit.write(c.config, c.tensors, c.labels)
    else:
        config, tensors = timm_vit.write(c.variant, c.config, c.tensors, c.labels, c.preprocess), c.tensors
    with written_aside(directory) as aside:
        write_tensors(aside / SAFETENSORS, tensors)
        if c.layout == "hf" and c.preprocess is not None:
            write_json(aside / _HF_PROCESSORS[0], c.preprocess)
        write_json(aside / "config.json", config)


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    if not file.is_file():
        names = sorted(f.name for f in directory.iterdir())
        held = f"it holds {', '.join(names[:10])}" if names else "it is empty"
        raise FileNotFoundError(f"no config.json in {directory}: {held}")
    return read_json(file)


def _read_processor(directory: Path, model_type: str) -> dict[str, Any] | None:
    for name in _HF_PROCESSORS:
        if (directory / name).is_file():
            value = read_json(directory / name)
            nested = value.get("image_processor")
            value = nested if isinstance(nested, dict) else value
            if not {"image_processor_type", "feature_extractor_type"} & set(value):
                # An old file; transformers then goes by the model.
                value["image_processor_type"] = hf_vit.PROCESSORS[model_type]
            return value
    return None
