# SPDX-License-Identifier: Apache-2.0
"""Weights in the layout that the CPU kernels read, kept from call to call at inference.

A copy is the size of its weight and is freed with it, or as soon as the weight is trained again. It is used
only while the weight has not changed. In-place edits raise a tensor's version; edits through ``.data`` do
not, so a fingerprint is compared as well: address, layout, and a few hundred elements spread over the
tensor. An edit through ``.data`` that touches none of those goes unseen.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vision_accel import _C


@dataclass(slots=True)
class _Entry:
    weight: weakref.ref[Tensor]
    version: int
    fingerprint: int
    form: object
    packed: Tensor


_entries: dict[int, _Entry] = {}  # by the id of the weight, which lives as long as its entry


def packed_weight(
    weight: Tensor, form: object = None, make: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The packed copy of a CPU weight [N, ...], made now if there is none that is up to date.

    Args:
        weight: what the copy belongs to.
        form: names what ``make`` does; a copy of another form is replaced.
        make: makes the copy; by default :func:`pack` of the weight with its trailing axes taken as one.
    """
    version = -1 if weight.is_inference() else weight._version
    fingerprint = _C.linear_fingerprint(weight)
    key = id(weight)
    entry = _entries.get(key)
    if (
        entry is not None
        and entry.fingerprint == fingerprint
        and entry.version == version
        and entry.form == form
        and entry.weight() is weight
    ):
        return entry.packed
    packed = pack(weight.detach().flatten(1)) if make is None else make(weight.detach())
    _entries[key] = _Entry(
        weakref.ref(weight, lambda _: _entries.pop(key, None)), version, fingerprint, form, packed
    )
    return packed


def pack(matrix: Tensor) -> Tensor:
    """The packed form of matrices [..., N, K]: [..., numel]."""
    several = matrix.flatten(0, -3) if matrix.ndim > 2 else matrix[None]
    packed = matrix.new_empty(len(several), _C.linear_packed_numel(several[0]))
    for one, out in zip(several, packed, strict=True):
        _C.linear_pack(one, out)
    return packed.view(*matrix.shape[:-2], -1)


def forget(weight: Tensor) -> None:
    """Free the packed copy of a weight, if there is one."""
    _entries.pop(id(weight), None)
