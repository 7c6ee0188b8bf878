# SPDX-License-Identifier: Apache-2.0
"""Weights that the processes of a run hold in parts (FSDP2), and their way to and from whole ones."""

import copy

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vision_accel.train.distributed import World


def shard(model: nn.Module, world: World) -> None:
    """Cut the weights over all processes; each block is put together while it computes.

    Source: torch.distributed.fsdp.fully_shard; Zhao et al. 2023, arXiv:2304.11277.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layers in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def local(x: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return x.to_local() if isinstance(x, DTensor) else x


def whole(x: Tensor) -> Tensor:
    """The whole tensor; all processes must ask for it together."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def part(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every process has, cut as ``like`` is."""
    if isinstance(like, DTensor) and x.shape == like.shape:
        return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)
    return x


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model; all processes must ask for it together."""
    return {name: whole(value.detach()) for name, value in model.state_dict().items()}


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put back what ``whole_weights`` returned."""
    held = model.state_dict()
    model.load_state_dict(
        {
            name: part(value.to(held[name].device), held[name]) if name in held else value
            for name, value in weights.items()
        }
    )


class Skeleton:
    """A model without its weights: makes plain copies of a model that is held in parts.

    Args:
        model: the model before ``shard``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).to("meta")

    def filled(self, model: nn.Module) -> nn.Module:
        """A copy with the whole weights of ``model``; all processes must ask for it together."""
        plain = copy.deepcopy(self.model)
        plain.load_state_dict(whole_weights(model), assign=True)
        return plain
