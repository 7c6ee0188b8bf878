# SPDX-License-Identifier: Apache-2.0
"""Weights in the layout that the CPU kernels read, kept from call to call at inference.

A copy is the size of its weight and is freed with it, or as soon as the weight is trained again. It is used
only while the weight has not changed. In-place edits raise a tensor's version; edits through ``.data`` do
not, so a fingerprint is compared as well: address, layout, and a few hundred elements spread over the
tensor. An edit through ``.data`` that touches none of those goes unseen.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from vision_accel import _C


@dataclass(slots=True)
class _Entry:
    weight: weakref.ref[Tensor]
    version: int
    fingerprint: int
    packed: Tensor


_entries: dict[int, _Entry] = {}  # by the id of the weight, which lives as long as its entry


def packed_weight(weight: Tensor) -> Tensor:
    """The packed copy of a CPU weight [N, ...], made now if there is none that is up to date."""
    version = -1 if weight.is_inference() else weight._version
    fingerprint = _C.linear_fingerprint(weight)
    key = id(weight)
    entry = _entries.get(key)
    if (
        entry is not None
        and entry.fingerprint == fingerprint
        and entry.version == version
        and entry.weight() is weight
    ):
        return entry.packed
    matrix = weight.detach().flatten(1)
    packed = torch.empty(_C.linear_packed_numel(matrix), dtype=weight.dtype, device=weight.device)
    _C.linear_pack(matrix, packed)
    _entries[key] = _Entry(
        weakref.ref(weight, lambda _: _entries.pop(key, None)), version, fingerprint, packed
    )
    return packed


def forget(weight: Tensor) -> None:
    """Free the packed copy of a weight, if there is one."""
    _entries.pop(id(weight), None)
