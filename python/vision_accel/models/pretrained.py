# SPDX-License-Identifier: Apache-2.0
"""Loads models from checkpoints of other libraries, and saves them back."""

from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from vision_accel.data.preprocess import Preprocess
from vision_accel.io import Checkpoint, describe, find_directory, read_checkpoint, write_checkpoint
from vision_accel.models.device import choose_device, choose_dtype

_Model = TypeVar("_Model", bound="Pretrained")
_MODELS: dict[str, type["Pretrained"]] = {}


class Pretrained(nn.Module, ModelHubMixin):
    """A model that can be loaded and saved. Its ``push_to_hub`` is huggingface_hub's.

    The mixin is the plain one: its PyTorch child falls back to pickles.

    Attributes:
        preprocess: how images become the model's input; None if unknown.
        labels: class index -> name; None if unknown.
    """

    def __init__(self) -> None:
        super().__init__()
        self.preprocess: Preprocess | None = None
        self.labels: dict[int, str] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _MODELS[cls.__name__.lower()] = cls

    def num_params(self, trainable: bool = False) -> int:
        """Number of parameters; with ``trainable`` only those that require gradients."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable)

    @classmethod
    def from_checkpoint(cls: type[_Model], checkpoint: Checkpoint, **overrides: Any) -> _Model:
        """Build the model that a checkpoint describes, with some config fields changed."""
        raise NotImplementedError

    def to_checkpoint(self, layout: str) -> Checkpoint:
        """Describe this model for a layout; a ValueError says what the layout cannot express."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **config_overrides: Any,
    ) -> _Model:
        """:func:`load`, with the options of a download."""
        directory = find_directory(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        model = load(directory, device, dtype, **config_overrides)
        if not isinstance(model, cls):
            raise ValueError(f"{directory} holds a {type(model).__name__}, not a {cls.__name__}")
        return model

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        layout: str = "hf",
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: Any = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """:func:`save`; ``config`` and ``model_card_kwargs`` are the mixin's and not used."""
        save(self, save_directory, layout)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id=repo_id or Path(save_directory).name, **push_to_hub_kwargs)


def load(
    path_or_hub_id: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    **config_overrides: Any,
) -> Any:
    """Load a model, ready for inference; its layout is found out.

    The layouts are those of Hugging Face, timm, open_clip, diffusers and LDM.

    Args:
        path_or_hub_id: a directory, a single file of LDM, or a repository on the Hugging Face Hub
            (``org/name[@revision]``).
        device: where to put it; "auto" is a GPU when there is one and this build has CUDA kernels.
        dtype: its floating dtype, such as ``torch.bfloat16`` or "bfloat16"; None for that of the file.
        config_overrides: fields of its config to change. ``num_classes=10`` gives it a new head, freshly
            drawn from torch's generator; ``img_size=384`` and ``patch_size=32`` resample its embeddings.

    Returns:
        The model in eval mode, with ``.config``, ``.preprocess`` and ``.labels``.

    Raises:
        FileNotFoundError: no such directory or repository, or a file of it is missing.
        ValueError: a damaged file, weights that do not fit, or an option that cannot be honoured.
        TypeError: an unknown field among the overrides.
    """
    device, dtype = choose_device(device), choose_dtype(dtype)  # mistakes are known before a download
    directory = find_directory(path_or_hub_id)
    checkpoint = read_checkpoint(directory)
    try:
        model = _MODELS[checkpoint.model].from_checkpoint(checkpoint, **config_overrides)
    except ValueError as e:
        raise ValueError(f"{directory}: {e}") from e
    except RuntimeError as e:  # torch: sizes beyond all memory
        raise ValueError(f"{directory}: the config describes no model that can be built: {e}") from e
    return model.to(device=device, dtype=dtype).eval()


def save(model: Pretrained, directory: str | Path, layout: str = "hf") -> None:
    """Save a model so that the library of the layout opens it with every key matched.

    Written aside and renamed: an interrupted save leaves what was there. Options that only matter in
    training, and how other image sizes are treated, are kept where the layout has a place for them. An odd
    margin is cropped, and transparency shown, as the layout does it.

    Args:
        model: the model.
        directory: where to; made if missing. Other files in it stay.
        layout: ``hf``, ``timm`` (ViT only) or ``open_clip`` (CLIP only); of an autoencoder ``diffusers``,
            which is the same as ``hf``, or ``ldm``.

    Raises:
        ValueError: the layout cannot express the model; the message lists why.
        OSError: it cannot be written.
    """
    write_checkpoint(Path(directory), model.to_checkpoint(layout))


def read_preprocess(checkpoint: Checkpoint, resized_to: tuple[int, int] | None = None) -> Preprocess | None:
    """How a checkpoint prepares images, or would for another image size; None if it does not say."""
    if checkpoint.preprocess is None:
        return None
    read = {
        "hf": Preprocess.from_hf,
        "timm": Preprocess.from_timm,
        "open_clip": Preprocess.from_open_clip,
    }[checkpoint.layout]
    recipe = read(checkpoint.preprocess)
    if resized_to is None:
        return recipe
    to = recipe.resize_to
    if to is not None:
        (h, w), (old_h, old_w) = resized_to, recipe.size
        to = (round(to[0] * h / old_h), round(to[1] * w / old_w))
    return replace(recipe, size=resized_to, resize_to=to)


def write_preprocess(recipe: Preprocess | None, layout: str) -> dict[str, Any] | None:
    """A recipe in the words of a layout; a ValueError names what it cannot express."""
    if recipe is None:
        return None
    if layout == "hf":
        return replace(recipe, crop_offset="floor").to_hf()
    recipe = replace(recipe, crop_offset="round", alpha="drop")
    return recipe.to_open_clip() if layout == "open_clip" else recipe.to_timm()


def fill(model: nn.Module, tensors: dict[str, Tensor], fresh: tuple[str, ...]) -> None:
    """Put weights into a model on the meta device, in their own dtype (the widest, if they differ).

    Args:
        model: the model.
        tensors: all of its weights, and nothing else.
        fresh: prefixes of the weights that are left for the caller to draw.

    Raises:
        ValueError: weights are missing, unexpected, or of another shape; all are listed.
    """
    expected = model.state_dict()
    missing = [k for k in expected if k not in tensors and not k.startswith(fresh)]
    unexpected = [k for k in tensors if k not in expected]
    shapes = [
        f"{k} {list(tensors[k].shape)}, expected {list(t.shape)}"
        for k, t in expected.items()
        if k in tensors and tensors[k].shape != t.shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(describe(missing, unexpected, shapes))
    odd = [f"{k} is {t.dtype}" for k, t in tensors.items() if not t.is_floating_point() or t.itemsize < 2]
    if odd:
        raise ValueError(f"weights must be floating point of 16 bits or more, but {odd[0]}")
    dtypes = [t.dtype for t in tensors.values()]
    model.to(reduce(torch.promote_types, dtypes, dtypes[0])).to_empty(device="cpu")
    model.load_state_dict(tensors, strict=False)
