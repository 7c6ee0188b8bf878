# SPDX-License-Identifier: Apache-2.0
"""CLIP and SigLIP: an image tower and a text tower that meet in one space.

Sources: Radford et al. 2021, arXiv:2103.00020 (CLIP); Zhai et al. 2023, arXiv:2303.15343 (SigLIP). Numerics
are those of transformers' ``CLIPModel`` and ``SiglipModel`` and of open_clip's ``CLIP``.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_accel.data.preprocess import Preprocess
from vision_accel.data.recipe_formats import HALF, OPENAI_MEAN, OPENAI_STD
from vision_accel.data.tokenizer import Tokenizer
from vision_accel.io import TOKENIZER_OPTIONS, Checkpoint, open_clip, read_file
from vision_accel.models.clip_config import CLIPConfig
from vision_accel.models.clip_text import TextTransformer
from vision_accel.models.pretrained import Pretrained, fill, read_preprocess, write_preprocess
from vision_accel.models.vit import ViT
from vision_accel.models.vit_config import ViTConfig, nearest_variant
from vision_accel.nn import Linear, resample_patch_embed, resample_pos_embed


class CLIP(Pretrained, library_name="vision_accel", pipeline_tag="zero-shot-image-classification"):
    """Two towers: images and texts -> embeddings whose cosine says how well they fit.

    Attributes:
        config: what it is built from.
        preprocess: how images become its input; None if unknown.
        tokenizer: texts -> token ids [B, context_length].
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        c = self.config = config
        self.visual = ViT(c.vision)
        self.text = TextTransformer(c.text)
        self.visual_projection = _projection(
            c.vision_proj, self.visual.num_features, c.embed_dim, c.vision_proj_bias
        )
        self.text_projection = _projection(c.text_proj, c.text.embed_dim, c.embed_dim, c.text_proj_bias)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = None if c.init_logit_bias is None else nn.Parameter(torch.empty(()))
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_options: bytes | None = None  # open_clip's
        self._no_tokenizer = "no tokenizer: set model.tokenizer, or load a checkpoint that has one"
        self.init_weights()

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts -> token ids [B, context_length].

        Raises:
            ValueError: the checkpoint has none; the message says what is missing.
        """
        if self._tokenizer is None:
            raise ValueError(self._no_tokenizer)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        size = self.config.text.vocab_size
        if tokenizer.vocab_size > size:
            raise ValueError(
                f"the tokenizer makes {tokenizer.vocab_size} ids, but the text tower has vocab_size {size}"
            )
        self._tokenizer = tokenizer

    def _make_tokenizer(self, make: Callable[[], Tokenizer]) -> None:
        """Set the tokenizer; a missing one is an error only when it is used."""
        try:
            self.tokenizer = make()
        except ValueError as e:
            self._no_tokenizer = str(e)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw all weights anew, as OpenAI and open_clip do for texts, and so in both towers."""
        c = self.config
        nn.init.normal_(self.text.token_embedding.weight, std=0.02)
        nn.init.normal_(self.text.pos_embed, std=0.01)
        width = c.vision.embed_dim
        for embedding in (self.visual.cls_token, self.visual.pos_embed):
            if embedding is not None:
                nn.init.normal_(embedding, std=width**-0.5)
        for tower in (self.visual, self.text):
            for block in tower.blocks:
                _init_block(block, tower.config.embed_dim, tower.config.depth)
        for head in (self.visual_projection, self.text_projection):
            if isinstance(head, Linear):
                nn.init.normal_(head.weight, std=head.in_features**-0.5)
                if head.bias is not None:
                    nn.init.zeros_(head.bias)
        self.logit_scale.fill_(c.init_logit_scale)
        if self.logit_bias is not None:
            assert c.init_logit_bias is not None
            self.logit_bias.fill_(c.init_logit_bias)

    @property
    def num_features(self) -> int:
        """Width of the embeddings."""
        return self.config.embed_dim

    # Forward.

    def encode_image(self, x: Tensor, normalize: bool = True) -> Tensor:
        """Images [B, channels, h, w] -> embeddings [B, E]; of length 1 unless ``normalize`` is False."""
        y = self.visual_projection(self.visual(x))
        return F.normalize(y, dim=-1) if normalize else y

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """Token ids [B, N] -> embeddings [B, E]; of length 1 unless ``normalize`` is False."""
        y = self.text_projection(self.text(tokens))
        return F.normalize(y, dim=-1) if normalize else y

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Embed images and texts.

        Args:
            image: [B, channels, h, w], or None.
            text: [B, N] token ids, or None.

        Returns:
            Normalised embeddings [B, E] of the images and of the texts (None for what was not given), and
            the logit scale; for SigLIP the logit bias too. Logits are ``scale * image @ text.T + bias``.
        """
        found: tuple[Tensor | None, ...] = (
            None if image is None else self.encode_image(image, normalize=True),
            None if text is None else self.encode_text(text, normalize=True),
            self.logit_scale.exp(),
        )
        return found if self.logit_bias is None else (*found, self.logit_bias)

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of every image with every text: [B images, B texts] and its transpose."""
        logits = self.logits(self.encode_image(image, normalize=True), self.encode_text(text, normalize=True))
        return logits, logits.T

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Logits [images, texts] of normalised embeddings."""
        y = self.logit_scale.exp() * image_features @ text_features.T
        return y if self.logit_bias is None else y + self.logit_bias

    @classmethod
    def create(cls, name: str, pretrained: str | Path | None = None, **overrides: Any) -> "CLIP":
        """See :func:`vision_accel.create_model`."""
        config = CLIPConfig.named(name)
        if pretrained is None:
            model = cls(config.replace(**overrides))
        else:
            tensors = read_file(Path(pretrained))
            checkpoint = Checkpoint("clip", "open_clip", _plain(config), tensors)
            try:
                model = cls.from_checkpoint(checkpoint, **overrides)
            except ValueError as e:
                raise ValueError(f"{pretrained}: {e}") from e
        text = model.config.text
        if (text.vocab_size, text.pool) == (49408, "argmax"):
            model._make_tokenizer(lambda: Tokenizer.openai(text.context_length))
        if model.config.vision.in_chans == 3:
            siglip = model.logit_bias is not None
            model.preprocess = Preprocess(
                size=model.config.vision.img_size,
                resize="squash" if siglip else "shortest",
                mean=HALF if siglip else OPENAI_MEAN,
                std=HALF if siglip else OPENAI_STD,
            )
        return model

    # What a training loop asks.

    def lock_image_tower(self, unlocked_groups: int = 0) -> None:
        """Freeze the image tower except its last ``unlocked_groups`` parts.

        The parts are: embeddings, each block (the final norm with the last), and the projection on top.
        """
        depth = self.config.vision.depth
        ids = {f"visual.{n}": i for n, i in self.visual.layer_ids().items()}
        # Pooling weights go with the projection.
        ids |= {n: depth + 1 for n, _ in self.named_parameters() if n.startswith("visual_projection.")}
        self._lock(ids, depth + 2 - unlocked_groups)

    def lock_text_tower(self, unlocked_layers: int = 0) -> None:
        """Freeze the text tower except its last ``unlocked_layers`` parts, counted as for the image tower."""
        depth = self.config.text.depth
        ids = {}
        for name, _ in self.named_parameters():
            if name.startswith("text.blocks."):
                ids[name] = int(name.split(".")[2]) + 1
            elif name.startswith("text.norm."):
                ids[name] = depth
            elif name.startswith("text_projection."):
                ids[name] = depth + 1
            elif name.startswith("text."):
                ids[name] = 0
        self._lock(ids, depth + 2 - unlocked_layers)

    def _lock(self, ids: dict[str, int], below: int) -> None:
        parameters = dict(self.named_parameters())
        for name, group in ids.items():
            if group < below:
                parameters[name].requires_grad_(False)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.visual.set_grad_checkpointing(enable)
        self.text.grad_checkpointing = enable

    def layer_ids(self) -> dict[str, int]:
        """Depth of each parameter, for layer-wise learning rates: the towers end at one height."""
        c = self.config
        top = max(c.vision.depth, c.text.depth) + 1
        visual = self.visual.layer_ids()
        ids = dict.fromkeys((name for name, _ in self.named_parameters()), top)
        for name in ids:
            tower, _, rest = name.partition(".")
            if tower == "visual":
                ids[name] = top - (c.vision.depth + 1 - visual[rest])
            elif tower == "text":
                parts = rest.split(".")
                own = int(parts[1]) + 1 if parts[0] == "blocks" else c.text.depth if parts[0] == "norm" else 0
                ids[name] = top - (c.text.depth + 1 - own)
        return ids

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone (besides every bias and norm)."""
        return {f"visual.{name}" for name in self.visual.no_weight_decay()} | {"text.pos_embed"}

    @torch.no_grad()
    def clamp_logit_scale(self, largest: float = 100.0) -> None:
        """Keep the logit scale between 1 and ``largest``, as training does after each step."""
        self.logit_scale.clamp_(0, torch.tensor(largest).log().item())

    # Checkpoints.

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **overrides: Any) -> "CLIP":
        """Build the CLIP that a checkpoint describes, with some config fields changed.

        Another image or patch size resamples the image tower's embeddings; another context length cuts the
        text tower's position embeddings, and cannot be larger.
        """
        try:
            stored = CLIPConfig().replace(**_with_timm_tower(checkpoint.config))
        except TypeError as e:
            raise ValueError(str(e)) from e
        wanted = stored.replace(**overrides)
        tensors = dict(checkpoint.tensors)
        if checkpoint.layout == "open_clip":
            tensors = open_clip.read_tensors(_plain(stored), tensors)
        old, new = stored.vision, wanted.vision
        if "visual.pos_embed" in tensors:
            prefix = 0 if old.no_embed_class else old.num_prefix_tokens
            tensors["visual.pos_embed"] = resample_pos_embed(
                tensors["visual.pos_embed"], old.grid_size, new.grid_size, prefix, new.pos_embed_antialias
            )
        patch = "visual.patch_embed.proj.weight"
        if patch in tensors and new.patch_size != old.patch_size:
            tensors[patch] = resample_patch_embed(tensors[patch], new.patch_size)
        length = wanted.text.context_length
        if length > stored.text.context_length:
            raise ValueError(
                f"context_length must be at most the checkpoint's {stored.text.context_length}, got {length}"
            )
        if "text.pos_embed" in tensors:
            tensors["text.pos_embed"] = tensors["text.pos_embed"][:, :length]
        with torch.device("meta"):
            model = cls(wanted)
        fill(model, tensors, ())
        files = dict(checkpoint.tokenizer)
        options = files.pop(TOKENIZER_OPTIONS, None)
        openai = options is not None and not files and "hf_tokenizer_name" not in json.loads(options)
        model._make_tokenizer(
            lambda: (
                Tokenizer.openai(length)
                if openai
                else Tokenizer.from_files(files, length, None if options is None else json.loads(options))
            )
        )
        model._tokenizer_options = options
        if new.in_chans == 3:  # the recipes are for pictures
            recipe = read_preprocess(checkpoint)
            if recipe is not None and recipe.size != old.img_size:
                raise ValueError(
                    f"the image tower takes (h, w) = {old.img_size}, but the preprocessing gives"
                    f" {recipe.size}: the files contradict each other"
                )
            model.preprocess = read_preprocess(
                checkpoint, new.img_size if new.img_size != old.img_size else None
            )
        return model

    def to_checkpoint(self, layout: str) -> Checkpoint:
        """Describe this CLIP for a layout."""
        if layout not in ("hf", "open_clip"):
            raise ValueError(f"layout must be hf or open_clip for a CLIP, got {layout!r}")
        recipe = write_preprocess(self.preprocess, layout)
        timm = _nearest_timm_tower(self.config) if layout == "open_clip" else None
        state = dict(self.state_dict())
        files = {} if self._tokenizer is None else dict(self._tokenizer.files)
        if layout == "open_clip" and self._tokenizer_options is not None:
            files[TOKENIZER_OPTIONS] = self._tokenizer_options
        return Checkpoint(
            "clip", layout, _plain(self.config), state, preprocess=recipe, timm=timm, tokenizer=files
        )


def _plain(config: CLIPConfig) -> dict[str, Any]:
    """Every field, with the place of the final norm said outright."""
    fields = dataclasses.asdict(config)
    fields["vision"]["fc_norm"] = config.vision.norm_after_pool
    return fields


def _with_timm_tower(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config whose image tower may be a variant of timm with changes."""
    tower = dict(config["vision"])
    name, rebuilt = tower.pop("timm", None), tower.pop("rebuilt", False)
    if name is None:
        return config
    try:
        base = ViTConfig.named(name)
    except ValueError as e:
        raise ValueError(f"vision_cfg.timm_model_name: {e}") from e
    if not rebuilt:
        tower["fc_norm"] = base.norm_after_pool
    return config | {"vision": base.replace(num_classes=0, **tower)}


def _nearest_timm_tower(config: CLIPConfig) -> tuple[str, dict[str, Any]]:
    """The variant of timm nearest to the image tower, and the fields that open_clip cannot change in it."""
    name, _ = nearest_variant(config.vision)
    base = ViTConfig.named(name).replace(num_classes=0)
    if base.class_token or config.vision.global_pool != "token":
        base = base.replace(global_pool=config.vision.global_pool)
    if config.vision_proj == "linear":  # timm then makes its default model, and changes the pooling later
        base = base.replace(fc_norm=ViTConfig.named(name).norm_after_pool)
    free = ("patch_drop_rate", "drop_path_rate", "dynamic_img_size", "pos_embed_antialias", "fc_norm")
    mine, theirs = dataclasses.asdict(config.vision), dataclasses.asdict(base)
    changes = {k: v for k, v in mine.items() if k not in free and v != theirs[k]}
    if config.vision.norm_after_pool != base.norm_after_pool:
        changes["fc_norm"] = config.vision.norm_after_pool
    return name, changes


def _projection(kind: str, width: int, embed_dim: int, bias: bool) -> nn.Module:
    return Linear(width, embed_dim, bias=bias) if kind == "linear" else nn.Identity()


def _init_block(block: nn.Module, width: int, depth: int) -> None:
    stds = {
        "attn.qkv": width**-0.5,
        "attn.proj": width**-0.5 * (2 * depth) ** -0.5,
        "mlp.fc1": (2 * width) ** -0.5,
        "mlp.fc2": width**-0.5 * (2 * depth) ** -0.5,
    }
    for name, std in stds.items():
        nn.init.normal_(block.get_submodule(name).weight, std=std)  # type: ignore[arg-type]
