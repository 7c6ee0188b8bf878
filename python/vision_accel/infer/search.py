# SPDX-License-Identifier: Apache-2.0
"""Find the pictures that fit a text or another picture best, in an index of embeddings."""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vision_accel.infer.embed import embed
from vision_accel.infer.features import writing_features
from vision_accel.infer.zero_shot import embed_text

_ROWS = 65536  # of the index that are compared at a time


class Hit(NamedTuple):
    """A picture that was found, and the cosine of its embedding with the query's."""

    source: str
    score: float


class Index:
    """Embeddings and the names of what they stand for.

    Args:
        features: [n, E]; they need not have length 1.
        sources: n names.
    """

    def __init__(self, features: Tensor, sources: Sequence[str]) -> None:
        if features.ndim != 2 or len(features) != len(sources):
            raise ValueError(
                f"index: features must be [n, E] with n sources, got {list(features.shape)}"
                f" and {len(sources)}"
            )
        self.features = torch.nn.functional.normalize(features.float(), dim=-1)
        self.sources = list(sources)

    def __len__(self) -> int:
        return len(self.sources)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it: ``.npz`` or ``.safetensors``, or ``.npy`` with the names in a ``.txt`` beside it."""
        with writing_features(path) as file:
            for source, row in zip(self.sources, self.features.numpy(), strict=True):
                file.add(source, row)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Index":
        """Read what ``save`` or ``vision-accel embed`` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(2, "no such index", str(path))
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "numpy") as file:
                    features = file.get_tensor("features")
                    sources = json.loads((file.metadata() or {})["sources"])
            elif path.suffix == ".npy":
                features = np.load(path, allow_pickle=False)
                sources = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
            else:
                with np.load(path, allow_pickle=False) as file:
                    features, sources = file["features"], file["sources"].tolist()
            return cls(torch.from_numpy(features), sources)
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile, SafetensorError, OSError) as e:
            raise ValueError(f"{path}: not an index of features and sources: {e}") from e

    def nearest(self, queries: Tensor, top_k: int = 10) -> list[list[Hit]]:
        """The ``top_k`` entries of largest cosine for each query [n, E], best first."""
        if queries.shape[-1] != self.features.shape[-1]:
            raise ValueError(
                f"index: it holds embeddings of {self.features.shape[-1]} numbers, the query has"
                f" {queries.shape[-1]}: they come from different models"
            )
        found = []
        for query in torch.nn.functional.normalize(queries.float(), dim=-1):
            scores = torch.cat([rows @ query for rows in self.features.split(_ROWS)])
            # Entries that could not be read are nan, and found last.
            values, places = scores.nan_to_num(-2.0).topk(min(top_k, len(self)))
            pairs = zip(places.tolist(), values.tolist(), strict=True)
            found.append([Hit(self.sources[i], v) for i, v in pairs if v > -2])
        return found


def search(
    model: Any, index: "Index | str | os.PathLike[str]", query: Any, top_k: int = 10
) -> list[list[Hit]]:
    """Search an index of pictures.

    Args:
        model: the CLIP or SigLIP that made the index.
        index: an Index, or a file that ``vision-accel embed`` wrote.
        query: a text or list of texts; or a picture (bytes, PIL, numpy, torch, ``pathlib.Path``) or a list.
        top_k: hits per query.

    Returns:
        For each query its hits, best first.

    Raises:
        ValueError: not an index, or one of another model.
    """
    if top_k < 1:
        raise ValueError(f"top_k: must be at least 1, got {top_k}")
    index = index if isinstance(index, Index) else Index.load(index)
    many = query if isinstance(query, list | tuple) else [query]
    if many and all(isinstance(q, str) for q in many):
        queries = embed_text(model, list(many))
    else:
        queries = embed(model, query, normalize=True)
    return index.nearest(queries, top_k)
