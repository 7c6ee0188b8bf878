# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint lies: a local directory, or a repository on the Hugging Face Hub."""

import re
from pathlib import Path
from typing import Any

_CONFIGS = ["config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json"]
_CONFIGS += ["tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json"]
_CONFIGS += ["special_tokens_map.json", "model_index.json", "vae/config.json"]
_SAFE = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_SAFE += ["open_clip_model.safetensors"]
_SAFE += [
    f"{folder}diffusion_pytorch_model{end}"
    for folder in ("", "vae/")
    for end in (".safetensors", "-*.safetensors", ".safetensors.index.json")
]
_PICKLES = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]
_PICKLES += ["open_clip_pytorch_model.bin"]
_PICKLES += ["diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin"]
_FILES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}


def find_directory(path_or_hub_id: str | Path, **options: Any) -> Path:
    """The local directory of a checkpoint, downloading the files it needs where it is a hub id.

    Args:
        path_or_hub_id: a directory, a file of weights, or ``organisation/name``; ``hf-hub:`` in front forces
            the hub, and ``@revision`` behind picks a branch, tag or commit. ``HF_HUB_OFFLINE`` is honoured.
        options: of ``huggingface_hub.snapshot_download``: ``revision``, ``token``, ``cache_dir``, ...

    Raises:
        FileNotFoundError: neither a directory nor a repository that can be reached.
        NotADirectoryError: the path is a file.
        ValueError: the path is an archive of NeMo.
    """
    text = str(path_or_hub_id)
    local = Path(text.removeprefix("local-dir:"))
    if not text.startswith("hf-hub:"):
        if local.is_dir():
            return local
        if local.is_file() and local.suffix in _FILES:
            return local
        if local.suffix == ".nemo" and local.is_file():
            raise ValueError(
                f"{local}: .nemo archives cannot be read, their layout is not documented; give the"
                " Hugging Face or open_clip checkpoint that it was made from"
            )
        if local.exists():
            raise NotADirectoryError(f"{local} is a file; give the directory that holds it")
    hub_id, _, revision = text.removeprefix("hf-hub:").partition("@")
    if isinstance(path_or_hub_id, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise FileNotFoundError(f"no such directory: {local}")
    if revision:
        options["revision"] = revision
    return _download(hub_id, options)


def _download(hub_id: str, options: dict[str, Any]) -> Path:
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  (slow, and only needed here)
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415
    except ImportError as e:
        raise FileNotFoundError(
            f"no directory {hub_id!r}, and the Hugging Face Hub needs `pip install huggingface_hub`"
        ) from e
    try:
        found = Path(snapshot_download(hub_id, allow_patterns=_CONFIGS + _SAFE, **options))
        if not any(found.rglob("*.safetensors")):
            found = Path(snapshot_download(hub_id, allow_patterns=_CONFIGS + _PICKLES, **options))
    except (HfHubHTTPError, HFValidationError, OSError) as e:
        reason = str(e).strip().splitlines()
        raise FileNotFoundError(
            f"no directory {hub_id!r}, and not found on the Hugging Face Hub: "
            f"{reason[0] if reason else type(e).__name__}"
        ) from e
    return found
