# SPDX-License-Identifier: Apache-2.0
"""Optimisers, and which parameters get which learning rate and weight decay."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vision_accel import ops
from vision_accel.train.config import OptimOptions
from vision_accel.train.errors import ConfigError
from vision_accel.train.sharding import local, part, whole


class AdamW(torch.optim.Optimizer):
    """AdamW with decoupled weight decay, all parameters of a group in one call of ``ops.adamw``.

    Args:
        params: parameters or groups of them, as for ``torch.optim.AdamW``.
        lr: learning rate.
        betas: averaging factors of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: decoupled decay, relative to the learning rate.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101; ``torch.optim.AdamW``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, grad_scale: float = 1.0
    ) -> float | None:
        """Update every parameter that has a gradient; gradients count as multiplied by ``grad_scale``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            at_step: dict[int, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["step"] = 0
                        state["exp_avg"] = torch.zeros_like(p)
                        state["exp_avg_sq"] = torch.zeros_like(p)
                    state["step"] += 1
                    at_step.setdefault(state["step"], []).append(p)
            for step, params in at_step.items():
                ops.adamw(
                    [local(p) for p in params],
                    [local(p.grad) for p in params if p.grad is not None],
                    [local(self.state[p]["exp_avg"]) for p in params],
                    [local(self.state[p]["exp_avg_sq"]) for p in params],
                    step=step,
                    lr=group["lr"],
                    betas=group["betas"],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                    grad_scale=grad_scale,
                )
        return loss


class SGD(torch.optim.SGD):
    """``torch.optim.SGD`` that takes the factor of the gradients like AdamW above."""

    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, grad_scale: float = 1.0
    ) -> float | None:
        """Update every parameter that has a gradient, after multiplying the gradients by ``grad_scale``."""
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        if grads and grad_scale != 1.0:
            torch._foreach_mul_(grads, grad_scale)
        loss: float | None = super().step(closure)
        return loss


def create_optimizer(model: nn.Module, options: OptimOptions) -> AdamW | SGD:
    """The optimiser of a run over the groups of ``param_groups``."""
    groups = param_groups(model, options.weight_decay, options.layer_decay)
    if options.name == "adamw":
        return AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps)
    return SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.momentum > 0)


def param_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups of equal weight decay and learning rate.

    Norms, biases (one dimension or less) and what ``model.no_weight_decay()`` names are not decayed. With a
    layer decay d, layer i of n learns with ``d ** (n - i)`` of the learning rate, kept as ``lr_scale`` in its
    group; the model's ``layer_ids()`` says which layer a parameter belongs to.

    Raises:
        ConfigError: a layer decay, and a model without ``layer_ids``.

    Source: Bao et al. 2022 (BEiT), arXiv:2106.08254; ``timm.optim.param_groups_layer_decay``.
    """
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    layers = dict.fromkeys(trained, 0)
    if layer_decay != 1.0:
        if not hasattr(model, "layer_ids"):
            raise ConfigError(f"optim.layer_decay: {type(model).__name__} does not say which layers it has")
        ids: dict[str, int] = model.layer_ids()  # type: ignore[operator]
        layers = {name: ids[name] for name in trained}
    top = max(layers.values(), default=0)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, p in trained.items():
        decay = 0.0 if p.ndim <= 1 or name in exempt else weight_decay
        scale = layer_decay ** (top - layers[name])
        empty = {"params": [], "weight_decay": decay, "lr_scale": scale}
        groups.setdefault((decay, scale), empty)["params"].append(p)
    return list(groups.values())


def pack_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state by parameter name: tensors ``"<name>/<key>"``, and the rest as plain values.

    All processes that hold parts of the parameters must call this together.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = whole(value)
            else:
                values[f"{name}/{key}"] = value
    return tensors, values


def unpack_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]
) -> None:
    """Put back what ``pack_state`` took out.

    Raises:
        ValueError: the state belongs to other parameters.
    """
    params = dict(model.named_parameters())
    optimizer.state.clear()
    for path, value in [*tensors.items(), *values.items()]:
        name, _, key = path.rpartition("/")
        p = params.get(name)
        if p is None or (isinstance(value, Tensor) and value.ndim and value.shape != p.shape):
            raise ValueError(f"optimiser state {path} has no parameter of that name and shape in the model")
        optimizer.state[p][key] = part(value.to(p.device), p) if isinstance(value, Tensor) else value
