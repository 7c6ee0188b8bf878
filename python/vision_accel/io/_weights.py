# SPDX-License-Identifier: Apache-2.0
"""Weights under the names of another library, and back."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vision_accel.io.tensors import describe


@dataclass(frozen=True)
class Weight:
    """Some weights of ours, which side by side are some weights of theirs.

    Attributes:
        ours: our names. Of two, the first is a third of the whole (q beside kv).
        theirs: their names, of equal parts.
        lead: how many axes of length 1 ours has in front; -1: ours is a scalar, theirs may be [1].
        transposed: theirs is [in, out].
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    lead: int = 0
    transposed: bool = False

    def read(self, parts: list[Tensor]) -> list[Tensor]:
        """Theirs -> ours."""
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.lead < 0:
            whole = whole.reshape(()) if whole.numel() == 1 else whole
        elif self.transposed:
            whole = whole.mT.contiguous()
        whole = whole[(None,) * max(0, self.lead)]
        if len(self.ours) == 1:
            return [whole]
        third = whole.shape[0] // 3
        return [whole[:third], whole[third:]]

    def write(self, parts: list[Tensor]) -> list[Tensor]:
        """Ours -> theirs."""
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.lead > 0:
            whole = whole.reshape(whole.shape[self.lead :])
        elif self.transposed:
            whole = whole.mT
        return list(whole.chunk(len(self.theirs))) if len(self.theirs) > 1 else [whole]


def layer(ours: str, *theirs: str, bias: bool = True) -> Iterable[Weight]:
    """Weight and bias of a module."""
    for kind in ("weight", "bias") if bias else ("weight",):
        yield Weight((f"{ours}.{kind}",), tuple(f"{t}.{kind}" for t in theirs))


def read_weights(
    weights: Iterable[Weight], tensors: dict[str, Tensor], ignored: Callable[[str], bool]
) -> dict[str, Tensor]:
    """All weights in our names.

    Raises:
        ValueError: weights are missing or unexpected; all are listed.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    missing: list[str] = []
    for weight in weights:
        absent = [n for n in weight.theirs if n not in tensors]
        missing += absent
        used.update(weight.theirs)
        if not absent:
            parts = weight.read([tensors[n] for n in weight.theirs])
            found.update(zip(weight.ours, parts, strict=True))
    unexpected = sorted(n for n in tensors if n not in used and not ignored(n))
    if missing or unexpected:
        raise ValueError(describe(missing, unexpected))
    return found


def write_weights(weights: Iterable[Weight], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All weights in their names."""
    found: dict[str, Tensor] = {}
    for weight in weights:
        parts = weight.write([tensors[n] for n in weight.ours])
        found.update(zip(weight.theirs, parts, strict=True))
    return found
