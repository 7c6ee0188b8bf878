# SPDX-License-Identifier: Apache-2.0
"""Weight files: safetensors, whole or in shards, and PyTorch pickles read without executing them."""

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vision_accel.io.files import read_json

SAFETENSORS = "model.safetensors"
_PICKLE = "pytorch_model.bin"
HF_WEIGHTS = (SAFETENSORS, f"{SAFETENSORS}.index.json", _PICKLE, f"{_PICKLE}.index.json")


def read_tensors(
    directory: Path, names: Sequence[str] = (), whole: Sequence[str] = (SAFETENSORS, _PICKLE)
) -> dict[str, Tensor]:
    """All weights of a checkpoint on the CPU, by the names in the file.

    Args:
        directory: where they are.
        names: files to look for first.
        whole: files to look for then; each may be in shards, which the index beside it names.

    Raises:
        FileNotFoundError: no weights, or a shard is missing.
        ValueError: a file is damaged, or not what its name says.
    """
    for name in names:
        if (directory / name).is_file():
            return read_file(directory / name)
    for name in whole:
        if (directory / name).is_file():
            return read_file(directory / name)
        if (directory / f"{name}.index.json").is_file():
            index = directory / f"{name}.index.json"
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
                raise ValueError(f"{index}: weight_map must map names to files")
            tensors: dict[str, Tensor] = {}
            for shard in sorted(set(shards.values())):
                if Path(shard).name != shard:
                    raise ValueError(f"{index}: {shard!r} is not a file name")
                if not (directory / shard).is_file():
                    raise FileNotFoundError(f"{index} names {shard}, which is missing")
                tensors |= read_file(directory / shard)
            return tensors
    raise FileNotFoundError(f"no {' or '.join([*names, *whole])} in {directory}")


def read_file(file: Path) -> dict[str, Tensor]:
    """All weights in one file: safetensors by its name, or else a pickle read without executing it."""
    return read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file that transformers and timm read."""
    # The format has no views: a tensor that shares memory with another would be refused.
    data = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()
    }
    try:
        save_file(data, file, metadata={"format": "pt"})
    except SafetensorError as e:
        raise OSError(f"{file}: {e}") from e


def describe(missing: list[str], unexpected: list[str], shapes: list[str] | None = None) -> str:
    """One message for weights that do not fit."""

    def some(names: list[str]) -> str:
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes or [])]
    return "the weights do not fit the config: " + "; ".join(f"{k} {some(v)}" for k, v in parts if v)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, whatever its name; a ValueError names a file that is none."""
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as e:
        with file.open("rb") as f:
            start = f.read(2)
        if start in {b"PK", b"\x80\x02", b"\x80\x04"}:
            raise ValueError(f"{file} is a pickle, not safetensors; it was not opened") from e
        raise ValueError(f"{file} is not a whole safetensors file: {e}") from e


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise ValueError(f"{file} holds more than tensors, or is damaged; it was not executed") from e
    except Exception as e:  # a damaged file can fail in any way
        raise ValueError(f"{file} is not a whole PyTorch file: {e}") from e
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise ValueError(f"{file} is not a dictionary of tensors")
    return {str(name): tensor for name, tensor in loaded.items()}
