# SPDX-License-Identifier: Apache-2.0
"""Vision Transformer.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929. Options, parameter names and numerics are those of timm's
``VisionTransformer`` and ``VisionTransformerDistilled``, so their checkpoints load without a key map.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vision_accel.io import Checkpoint
from vision_accel.models.pretrained import Pretrained, fill, read_preprocess, write_preprocess
from vision_accel.models.vit_config import Size, ViTConfig, nearest_variant
from vision_accel.nn import (
    AttentionPool,
    Block,
    LayerNorm,
    Linear,
    PatchDropout,
    PatchEmbed,
    SwiGLU,
    is_plain,
    resample_patch_embed,
    resample_pos_embed,
)

_STEM = ("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed", "norm_pre")


class ViT(Pretrained, library_name="vision_accel", pipeline_tag="image-classification"):
    """Vision Transformer: images [B, channels, h, w] -> logits [B, num_classes].

    Attributes:
        config: what it is built from.
        preprocess: how images become its input; None if unknown.
        labels: class index -> name; None if unknown.
        distilled_training: a distilled model in training returns the logits of both heads, not their mean.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        c = self.config = config
        self.grad_checkpointing = self.distilled_training = False
        dynamic = c.dynamic_img_size or c.dynamic_img_pad
        self.patch_embed = PatchEmbed(
            c.img_size, c.patch_size, c.in_chans, c.embed_dim, not c.pre_norm, dynamic, c.dynamic_img_pad
        )
        length = self.patch_embed.num_patches + (0 if c.no_embed_class else c.num_prefix_tokens)
        self.cls_token = nn.Parameter(torch.empty(1, 1, c.embed_dim)) if c.class_token else None
        self.dist_token = nn.Parameter(torch.empty(1, 1, c.embed_dim)) if c.distilled else None
        self.reg_token = nn.Parameter(torch.empty(1, c.reg_tokens, c.embed_dim)) if c.reg_tokens else None
        learned = c.pos_embed == "learn"
        self.pos_embed = nn.Parameter(torch.empty(1, length, c.embed_dim)) if learned else None
        self.pos_drop = nn.Dropout(c.pos_drop_rate)
        self.patch_drop = PatchDropout(c.patch_drop_rate, c.num_prefix_tokens)
        self.norm_pre = LayerNorm(c.embed_dim, c.norm_eps) if c.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                c.embed_dim, c.num_heads, c.hidden_dim, qkv_bias=c.qkv_bias, proj_bias=c.proj_bias,
                qk_norm=c.qk_norm, scale_attn_norm=c.scale_attn_norm, scale_mlp_norm=c.scale_mlp_norm,
                init_values=c.init_values, activation=c.act_layer, mlp=c.mlp_layer, norm_eps=c.norm_eps,
                proj_drop=c.proj_drop_rate, attn_drop=c.attn_drop_rate,
                drop_path=c.drop_path_rate * i / max(1, c.depth - 1),
            )
            for i in range(c.depth)
        )  # fmt: skip
        before, after = c.final_norm and not c.norm_after_pool, c.final_norm and c.norm_after_pool
        self.norm = LayerNorm(c.embed_dim, c.norm_eps) if before else nn.Identity()
        self.attn_pool = (
            AttentionPool(c.embed_dim, c.num_heads, c.hidden_dim, c.act_layer, c.norm_eps)
            if c.global_pool == "map"
            else None
        )
        self.fc_norm = LayerNorm(self._pooled_dim, c.norm_eps) if after else nn.Identity()
        self.pooler = Linear(self._pooled_dim, c.pooler_dim) if c.pooler_dim else None
        self.head_drop = nn.Dropout(c.drop_rate)
        self.head = self._new_head()
        self.head_dist = self._new_head() if c.distilled else None
        self.init_weights()

    def _new_head(self) -> nn.Module:
        classes = self.config.num_classes
        return Linear(self.num_features, classes) if classes else nn.Identity()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw all weights anew, as timm does: truncated normal 0.02 for linear layers and positions."""
        for wide in (self.pos_embed, self.dist_token):
            if wide is not None:
                nn.init.trunc_normal_(wide, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        self.apply(_init_weights)

    @property
    def num_features(self) -> int:
        """Width of the pooled features."""
        return self.config.pooler_dim or self._pooled_dim

    @property
    def _pooled_dim(self) -> int:
        return self.config.embed_dim * (2 if self.config.global_pool == "token_avg" else 1)

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0: there is none."""
        return self.config.num_classes

    # Forward.

    def embed(self, x: Tensor) -> Tensor:
        """Images [B, channels, h, w] -> tokens [B, N, C] as the first block takes them."""
        c, grid = self.config, self.patch_embed.check(x)
        tokens: list[Tensor] = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        prefix = torch.cat(tokens, dim=1) if tokens else None  # [1, P, C]
        positions = None
        if self.pos_embed is not None:
            embedded = 0 if c.no_embed_class else c.num_prefix_tokens
            pos = resample_pos_embed(self.pos_embed, c.grid_size, grid, embedded, c.pos_embed_antialias)
            if embedded and prefix is not None:
                prefix = prefix + pos[:, :embedded]
            positions = pos[:, embedded:].expand(x.shape[0], -1, -1)
        if is_plain(self.patch_embed, PatchEmbed):
            x = self.patch_embed(x, residual=positions)
        else:
            x = self.patch_embed(x)
            x = x if positions is None else x + positions
        if prefix is not None:
            x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.pos_drop(x)
        return self.norm_pre(self.patch_drop(x))

    def _run(self, block: nn.Module, x: Tensor, first: int | None = None) -> Tensor:
        args = (x,) if first is None else (x, first)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, channels, h, w] -> every token after the final norm [B, N, C], prefix tokens first."""
        x = self.embed(x)
        for block in self.blocks:
            x = self._run(block, x)
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] -> [B, C] by ``global_pool``; unchanged if that is empty.

        Of a distilled model, the mean of its class and distillation tokens.
        """
        kind = self.config.global_pool
        if not kind:
            return x
        if kind == "token":
            return x[:, :2].mean(dim=1) if self.config.distilled else x[:, 0]
        pooled = x if self.config.pool_include_prefix else x[:, self.config.num_prefix_tokens :]
        if self.attn_pool is not None:
            return self.attn_pool(pooled)
        if kind == "max":
            return pooled.amax(dim=1)
        mean = pooled.mean(dim=1)
        if kind == "token_avg":
            return torch.cat([x[:, 0], mean], dim=-1)
        return mean if kind == "avg" else 0.5 * (pooled.amax(dim=1) + mean)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Tokens [B, N, C] of :meth:`forward_features` -> logits, or the pooled features in front of them."""
        if self.head_dist is not None and not pre_logits:
            both = self.head(self.head_drop(x[:, 0])), self.head_dist(self.head_drop(x[:, 1]))
            return both if self.distilled_training and self.training else (both[0] + both[1]) / 2
        x = self.fc_norm(self.pool(x))
        if self.pooler is not None:
            x = torch.tanh(self.pooler(x))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Classify.

        The last block computes only what the heads see where nothing else is asked of it, which is exact.

        Args:
            x: [B, channels, h, w].
            pre_logits: return the features in front of the head.

        Returns:
            [B, num_classes] (two if ``distilled_training``); features without a head or with ``pre_logits``.
        """
        last = self.blocks[-1] if self.blocks else None
        if self.config.global_pool != "token" or not isinstance(last, Block) or _is_hooked(last, self.norm):
            return self.forward_head(self.forward_features(x), pre_logits)
        x = self.embed(x)
        for block in self.blocks[:-1]:
            x = self._run(block, x)
        x = self._run(last, x, first=1 + self.config.distilled)  # [B, 1 or 2, C]
        return self.forward_head(self.norm(x), pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features of several blocks, as timm gives them.

        Args:
            x: [B, channels, h, w].
            indices: the last n blocks, these blocks (negative counts from the end), or None for all.
            return_prefix_tokens: give pairs (patches, prefix tokens [B, P, C]).
            norm: apply the final norm to each.
            stop_early: do not run blocks after the last one asked for.
            output_fmt: patches as NCHW [B, C, rows, columns] or NLC [B, N, C].
            intermediates_only: leave out the final tokens.

        Returns:
            (final tokens [B, N, C], list of intermediates), or the list.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"ViT: output_fmt must be NCHW or NLC, got {output_fmt!r}")
        depth, prefix = len(self.blocks), self.config.num_prefix_tokens
        chosen = range(depth) if indices is None else indices
        chosen = range(depth - chosen, depth) if isinstance(chosen, int) else chosen
        taken = {i + depth if i < 0 else i for i in chosen}
        if not taken or min(taken) < 0 or max(taken) >= depth:
            raise ValueError(f"ViT: indices must name some of {depth} blocks, got {indices}")
        rows, columns = self.patch_embed.check(x)
        x = self.embed(x)
        found = []
        for i, block in enumerate(self.blocks[: max(taken) + 1] if stop_early else self.blocks):
            x = self._run(block, x)
            if i in taken:
                tokens = self.norm(x) if norm else x
                patches = tokens[:, prefix:]
                if output_fmt == "NCHW":
                    patches = patches.transpose(1, 2).unflatten(2, (rows, columns)).contiguous()
                found.append((patches, tokens[:, :prefix]) if return_prefix_tokens and prefix else patches)
        return found if intermediates_only else (self.norm(x), found)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:
        """What DINO calls :meth:`forward_intermediates`: the last n blocks, as [B, N, C] or as images."""
        fmt = "NCHW" if reshape else "NLC"
        return self.forward_intermediates(x, n, return_prefix_tokens, norm, False, fmt, True)

    # Changes for fine-tuning.

    def get_classifier(self) -> Any:
        """The head, a linear layer or an identity; of a distilled model both."""
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the model a new, freshly drawn head; optionally another pooling (not to or from ``map``)."""
        pool = self.config.global_pool if global_pool is None else global_pool
        if pool != self.config.global_pool and "map" in (pool, self.config.global_pool):
            raise ValueError("ViT: attention pooling has weights; it cannot be added or removed here")
        # The norm stays where it is, whatever the new pooling would have by default.
        fc_norm = self.config.norm_after_pool
        self.config = self.config.replace(num_classes=num_classes, global_pool=pool, fc_norm=fc_norm)
        for name in ("head", "head_dist")[: 1 + self.config.distilled]:
            head = self._new_head().to(self.patch_embed.proj.weight)
            setattr(self, name, head.apply(_init_weights).train(self.training))
        self.labels = None

    @torch.no_grad()
    def set_input_size(
        self, img_size: int | Size | None = None, patch_size: int | Size | None = None
    ) -> None:
        """Change the nominal image or patch size, resampling position and patch embeddings as timm does."""
        new = self.config.replace(
            img_size=img_size or self.config.img_size, patch_size=patch_size or self.config.patch_size
        )
        old_grid, embed = self.config.grid_size, self.patch_embed
        embed.proj.weight = nn.Parameter(resample_patch_embed(embed.proj.weight, new.patch_size))
        embed.proj.kernel_size = embed.proj.stride = embed.patch_size = new.patch_size
        embed.img_size = new.img_size
        if self.pos_embed is not None:
            prefix = 0 if new.no_embed_class else new.num_prefix_tokens
            pos = resample_pos_embed(self.pos_embed, old_grid, new.grid_size, prefix, new.pos_embed_antialias)
            self.pos_embed = nn.Parameter(pos, requires_grad=self.pos_embed.requires_grad)
        self.config = new

    # Checkpoints.

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **overrides: Any) -> "ViT":
        """Build the ViT that a checkpoint describes, with some config fields changed.

        Another number of classes means a new head in place of the old head and pooler. Another pooling
        leaves the final norm where it is, unless ``fc_norm`` is given.
        """
        base = ViTConfig.named(checkpoint.variant) if checkpoint.variant else ViTConfig()
        try:
            stored = base.replace(**checkpoint.config)
        except TypeError as e:
            raise ValueError(str(e)) from e
        wanted = stored.replace(**overrides)
        if wanted.global_pool != stored.global_pool and "fc_norm" not in overrides:
            wanted = wanted.replace(fc_norm=stored.norm_after_pool)
        new_head = wanted.num_classes != stored.num_classes
        if new_head and "pooler_dim" not in overrides:
            wanted = wanted.replace(pooler_dim=None)
        fresh = ("head.", "head_dist.")[: 1 + wanted.distilled] if new_head else ()
        fresh += ("pooler.",) * (wanted.pooler_dim != stored.pooler_dim)

        tensors = {k: v for k, v in checkpoint.tensors.items() if not k.startswith(fresh)}
        if "pos_embed" in tensors:
            prefix = 0 if stored.no_embed_class else stored.num_prefix_tokens
            tensors["pos_embed"] = resample_pos_embed(
                tensors["pos_embed"], stored.grid_size, wanted.grid_size, prefix, wanted.pos_embed_antialias
            )
        if "patch_embed.proj.weight" in tensors and wanted.patch_size != stored.patch_size:
            weight = resample_patch_embed(tensors["patch_embed.proj.weight"], wanted.patch_size)
            tensors["patch_embed.proj.weight"] = weight

        with torch.device("meta"):
            model = cls(wanted)
        fill(model, tensors, fresh)
        for name in fresh:
            model.get_submodule(name[:-1]).apply(_init_weights)
        model.labels = None if new_head else checkpoint.labels
        if wanted.in_chans == 3:  # the recipes are for pictures
            resized_to = wanted.img_size if wanted.img_size != stored.img_size else None
            model.preprocess = read_preprocess(checkpoint, resized_to)
        return model

    def to_checkpoint(self, layout: str) -> Checkpoint:
        """Describe this ViT for a layout."""
        if layout != "timm":
            config, variant = dataclasses.asdict(self.config), None
        else:
            variant, config = nearest_variant(self.config)
        recipe = write_preprocess(self.preprocess, layout)
        return Checkpoint("vit", layout, config, dict(self.state_dict()), variant, self.labels, recipe)

    # What a training loop asks.

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone (besides every bias and norm)."""
        return {"pos_embed", "cls_token", "dist_token", "reg_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, in timm's form."""
        return {
            "stem": rf"^{'|'.join(_STEM)}",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def layer_ids(self) -> dict[str, int]:
        """Depth of each parameter, for layer-wise learning rates: 0 embeddings, then blocks, then head.

        The final norm counts as part of the last block, as in timm.
        """
        ids = {}
        for name, _ in self.named_parameters():
            if name.startswith("blocks."):
                ids[name] = int(name.split(".")[1]) + 1
            elif name.startswith(_STEM):
                ids[name] = 0
            else:
                ids[name] = self.config.depth + (not name.startswith("norm."))
        return ids


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (AttentionPool, SwiGLU)):
        module.init_weights()


def _is_hooked(*modules: nn.Module) -> bool:
    """Whether somebody watches these modules, and so expects all tokens to pass through them."""
    return not all(is_plain(m, type(m)) for root in modules for m in root.modules())
