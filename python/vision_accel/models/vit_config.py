# SPDX-License-Identifier: Apache-2.0
"""What a Vision Transformer can be: its options, and the known variants by name. Needs no torch."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from vision_accel._options import check_fields, check_names, unknown_model

_FUSED = ("gelu", "gelu_tanh", "quick_gelu", "silu")  # with fc1
ACTIVATIONS = (*_FUSED, "relu", "relu6", "leaky_relu", "hard_swish", "mish", "sigmoid", "tanh")
POOLS = ("", "token", "avg", "max", "avgmax", "token_avg", "map")
Size = tuple[int, int]
# What timm's VisionTransformerDistilled is built with.
_DISTILLED: dict[str, Any] = {
    "global_pool": "token", "class_token": True, "reg_tokens": 0, "pos_embed": "learn",
    "no_embed_class": False, "norm_after_pool": False, "pooler_dim": None,
}  # fmt: skip


@dataclass(frozen=True)
class ViTConfig:
    """Everything that shapes a ViT. Names and defaults are timm's; sizes may be given as one number."""

    img_size: Size = (224, 224)  # height, width
    patch_size: Size = (16, 16)
    in_chans: int = 3
    num_classes: int = 1000  # 0: no head, the model returns pooled features
    global_pool: str = "token"  # one of POOLS; "": none, every token goes through the head
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    mlp_layer: str = "mlp"  # or "swiglu"
    act_layer: str = "gelu"  # one of ACTIVATIONS
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    proj_bias: bool = True  # of the attention output and the MLP
    qk_norm: bool = False
    scale_attn_norm: bool = False  # norm between attention and its output projection (BEiT-3)
    scale_mlp_norm: bool = False  # norm between activation and fc2 (BEiT-3)
    init_values: float | None = None  # initial layer scale; None: no layer scale
    class_token: bool = True
    reg_tokens: int = 0  # register tokens, arXiv:2309.16588
    distilled: bool = False  # a distillation token and a head for it, arXiv:2012.12877
    pos_embed: str = "learn"  # or "none"
    pos_embed_antialias: bool = True  # when positions are resized: True as timm, False as Hugging Face
    no_embed_class: bool = False  # no position embedding for class and register tokens
    pre_norm: bool = False  # norm after the embeddings, and no bias in the patch embedding (CLIP)
    final_norm: bool = True
    fc_norm: bool | None = None  # final norm after pooling; None: when pooling is avg, max or avgmax
    pool_include_prefix: bool = False  # pool class and register tokens too
    pooler_dim: int | None = None  # dense + tanh on the pooled features (Hugging Face ViTModel)
    dynamic_img_size: bool = False  # take any size that is a multiple of the patch
    dynamic_img_pad: bool = False  # take any size, pad to a multiple of the patch
    drop_rate: float = 0.0  # before the head
    pos_drop_rate: float = 0.0
    patch_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0  # of the last block; grows linearly from 0

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size"):
            value = getattr(self, name)
            pair = (value, value) if isinstance(value, int) else tuple(value)
            if len(pair) != 2 or not all(isinstance(v, int) and v > 0 for v in pair):
                raise ValueError(f"ViT: {name} must be one or two positive integers, got {value!r}")
            object.__setattr__(self, name, pair)
        check_fields("ViT", self)
        for name in ("in_chans", "embed_dim", "num_heads"):
            self._require(name, getattr(self, name) > 0, "positive")
        for name in ("depth", "num_classes", "reg_tokens"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("num_heads", self.embed_dim % self.num_heads == 0, f"a divisor of {self.embed_dim}")
        self._require("norm_eps", 0 <= self.norm_eps < 1, "0 or more and below 1")
        self._require("mlp_ratio", self.hidden_dim > 0, "positive")
        if self.mlp_layer == "swiglu" and self.hidden_dim % 2:
            raise ValueError(f"ViT: swiglu needs an even hidden size, got {self.hidden_dim}")
        self._require("global_pool", self.global_pool in POOLS, f"one of {', '.join(map(repr, POOLS))}")
        if self.global_pool in {"token", "token_avg"} and not self.class_token:
            raise ValueError(f"ViT: global_pool {self.global_pool!r} needs class_token=True")
        if self.distilled:
            for name, value in _DISTILLED.items():
                self._require(name, getattr(self, name) == value, f"{value!r} with distilled=True")
        self._require("act_layer", self.act_layer in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
        self._require("mlp_layer", self.mlp_layer in ("mlp", "swiglu"), "mlp or swiglu")
        self._require("pos_embed", self.pos_embed in ("learn", "none"), "learn or none")
        for name in (f.name for f in dataclasses.fields(self) if f.name.endswith("_rate")):
            self._require(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        if self.patch_size[0] > self.img_size[0] or self.patch_size[1] > self.img_size[1]:
            raise ValueError(f"ViT: patch_size {self.patch_size} is larger than img_size {self.img_size}")

    def _require(self, name: str, condition: bool, rule: str) -> None:
        if not condition:
            raise ValueError(f"ViT: {name} must be {rule}, got {getattr(self, name)!r}")

    @property
    def hidden_dim(self) -> int:
        """Outputs of fc1."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def grid_size(self) -> Size:
        """Rows and columns of patches in an image of the nominal size."""
        return self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1]

    @property
    def num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens, which come before the patches."""
        return int(self.class_token) + int(self.distilled) + self.reg_tokens

    @property
    def norm_after_pool(self) -> bool:
        """Whether the final norm is ``fc_norm``, applied to pooled features."""
        return self.global_pool in ("avg", "max", "avgmax") if self.fc_norm is None else self.fc_norm

    @classmethod
    def named(cls, name: str, **changes: Any) -> "ViTConfig":
        """The config of a known variant, with some fields changed; an unknown name is a ValueError."""
        known = variants()
        if name not in known:
            raise unknown_model(name, known)
        return cls().replace(**{**known[name], **changes})

    def replace(self, **changes: Any) -> "ViTConfig":
        """A copy with some fields changed; an unknown field is a TypeError that names the nearest one."""
        check_names("ViT", changes, [f.name for f in dataclasses.fields(self)])
        return dataclasses.replace(self, **changes)


# Width, depth, heads, MLP ratio.
SIZES: dict[str, tuple[int, int, int, float]] = {
    "tiny": (192, 12, 3, 4.0),  # Touvron et al. 2020 (DeiT), arXiv:2012.12877
    "wee": (256, 14, 4, 5.0),  # where no paper is named: timm
    "xsmall": (256, 10, 4, 4.0),
    "little": (320, 14, 5, 5.6),
    "small": (384, 12, 6, 4.0),  # Touvron et al. 2020
    "medium": (512, 12, 8, 4.0),
    "mediumd": (512, 20, 8, 4.0),
    "betwixt": (640, 12, 10, 4.0),
    "base": (768, 12, 12, 4.0),  # Dosovitskiy et al. 2020, table 1
    "plus": (896, 12, 14, 4.0),  # open_clip
    "so150m2": (832, 21, 13, 34 / 13),
    "so150m": (896, 18, 14, 2.572),
    "intern300m": (1024, 24, 16, 4.0),
    "large": (1024, 24, 16, 4.0),  # Dosovitskiy et al. 2020, table 1
    "so400m": (1152, 27, 16, 3.7362),  # Alabdulmohsin et al. 2023, arXiv:2305.13035
    "huge": (1280, 32, 16, 4.0),  # Dosovitskiy et al. 2020, table 1
    "giant": (1408, 40, 16, 48 / 11),  # g: Zhai et al. 2021, arXiv:2106.04560, table 2
    "giantopt": (1536, 40, 16, 4.0),  # Tschannen et al. 2025 (SigLIP 2), arXiv:2502.14786
    "gigantic": (1664, 48, 16, 64 / 13),  # G, open_clip's bigG: Zhai et al. 2021, table 2
}

_SCALE = {"init_values": 1e-5}
_QUICK = {"act_layer": "quick_gelu"}
_TANH = {"act_layer": "gelu_tanh"}
_AVG = {"class_token": False, "global_pool": "avg"}
_GAP = {**_AVG, "fc_norm": False}
_REG_GAP = {**_AVG, "no_embed_class": True}
_CLIP = {"pre_norm": True, "norm_eps": 1e-5}  # Radford et al. 2021, arXiv:2103.00020
_DINO = {**_SCALE, "img_size": 518, "num_classes": 0}  # Oquab et al. 2023, arXiv:2304.07193
_REG4 = {"reg_tokens": 4, "no_embed_class": True}  # Darcet et al. 2023, arXiv:2309.16588
_SWIGLU = {"mlp_ratio": 5.33334, "mlp_layer": "swiglu", "act_layer": "silu"}
_DINO_G = {**_SWIGLU, "embed_dim": 1536, "num_heads": 24}
_TIPS = {"img_size": 448, "init_values": 1.0, "num_classes": 0, "reg_tokens": 1, "no_embed_class": True}
_SIGLIP = {"class_token": False, "global_pool": "map", "num_classes": 0}  # Zhai et al. 2023, arXiv:2303.15343
# Wang et al. 2022 (BEiT-3), arXiv:2208.10442
_BEIT = {"scale_attn_norm": True, "scale_mlp_norm": True, "global_pool": "avg", "norm_eps": 1e-5}

# What differs from the plain model, and for which names. Size, patch and image size are in the name.
_VARIANTS: list[tuple[dict[str, Any], str]] = [
    ({}, """
     vit_tiny_patch16_224 vit_tiny_patch16_384 vit_small_patch8_224 vit_small_patch16_224
     vit_small_patch16_384 vit_small_patch32_224 vit_small_patch32_384 vit_base_patch8_224
     vit_base_patch16_224 vit_base_patch16_384 vit_base_patch32_224 vit_base_patch32_384
     vit_large_patch14_224 vit_large_patch16_224 vit_large_patch16_384 vit_large_patch32_224
     vit_large_patch32_384 vit_huge_patch14_224 vit_giant_patch14_224 vit_gigantic_patch14_224
     deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_base_patch16_384"""),
    ({"distilled": True}, """
     deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224 deit_base_distilled_patch16_224
     deit_base_distilled_patch16_384"""),
    ({"init_values": 1e-6, "no_embed_class": True}, """
     deit3_small_patch16_224 deit3_small_patch16_384 deit3_medium_patch16_224 deit3_base_patch16_224
     deit3_base_patch16_384 deit3_large_patch16_224 deit3_large_patch16_384 deit3_huge_patch14_224"""),
    ({"patch_size": 16, "img_size": 240, "no_embed_class": True}, """
     flexivit_small flexivit_base flexivit_large"""),
    ({"qkv_bias": False}, "vit_base_patch16_224_miil"),
    (_SCALE, "vit_base_patch32_plus_256 vit_base_patch16_plus_240"),
    ({**_SCALE, "depth": 36}, "vit_small_patch16_36x1_224"),
    ({"global_pool": "avg"}, "eva_large_patch14_196 eva_large_patch14_336"),
    ({**_GAP, "qkv_bias": False, "init_values": 1e-6}, """
     vit_medium_patch16_gap_240 vit_medium_patch16_gap_256 vit_medium_patch16_gap_384
     vit_betwixt_patch16_gap_256"""),
    ({**_GAP, "num_heads": 16}, "vit_base_patch16_gap_224"),
    (_GAP, "vit_huge_patch14_gap_224 vit_huge_patch16_gap_448 vit_giant_patch16_gap_224"),
    (_CLIP, """
     vit_xsmall_patch16_clip_224 vit_medium_patch16_clip_224 vit_medium_patch32_clip_224
     vit_betwixt_patch32_clip_224 vit_base_patch16_clip_224 vit_base_patch16_clip_384
     vit_base_patch16_plus_clip_240 vit_base_patch32_clip_224 vit_base_patch32_clip_256
     vit_base_patch32_clip_384 vit_base_patch32_clip_448 vit_large_patch14_clip_224
     vit_large_patch14_clip_336 vit_huge_patch14_clip_224 vit_huge_patch14_clip_336
     vit_huge_patch14_clip_378 vit_giant_patch14_clip_224 vit_gigantic_patch14_clip_224
     vit_gigantic_patch14_clip_378"""),
    ({**_CLIP, **_QUICK}, """
     vit_base_patch16_clip_quickgelu_224 vit_base_patch32_clip_quickgelu_224
     vit_large_patch14_clip_quickgelu_224 vit_large_patch14_clip_quickgelu_336
     vit_huge_patch14_clip_quickgelu_224 vit_huge_patch14_clip_quickgelu_378
     vit_gigantic_patch14_clip_quickgelu_224"""),
    (_DINO, "vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_large_patch14_dinov2"),
    ({**_DINO, **_REG4}, """
     vit_small_patch14_reg4_dinov2 vit_base_patch14_reg4_dinov2 vit_large_patch14_reg4_dinov2"""),
    ({**_DINO, **_DINO_G}, "vit_giant_patch14_dinov2"),
    ({**_DINO, **_DINO_G, **_REG4}, "vit_giant_patch14_reg4_dinov2"),
    (_TIPS, """
     vit_base_patch14_reg1_tipsv2 vit_large_patch14_reg1_tipsv2 vit_so400m_patch14_reg1_tipsv2"""),
    ({**_TIPS, **_DINO_G}, "vit_giant_patch14_reg1_tipsv2"),
    (_SIGLIP, """
     vit_base_patch16_siglip_224 vit_base_patch16_siglip_256 vit_base_patch16_siglip_384
     vit_base_patch16_siglip_512 vit_large_patch16_siglip_256 vit_large_patch16_siglip_384
     vit_so400m_patch14_siglip_224 vit_so400m_patch14_siglip_378 vit_so400m_patch14_siglip_384"""),
    ({**_SIGLIP, **_TANH}, """
     vit_base_patch32_siglip_256 vit_large_patch16_siglip_512 vit_so400m_patch16_siglip_256
     vit_so400m_patch16_siglip_384 vit_so400m_patch16_siglip_512 vit_giantopt_patch16_siglip_256
     vit_giantopt_patch16_siglip_384"""),
    ({**_GAP, "num_classes": 0}, """
     vit_base_patch16_siglip_gap_224 vit_base_patch16_siglip_gap_256 vit_base_patch16_siglip_gap_384
     vit_base_patch16_siglip_gap_512 vit_large_patch16_siglip_gap_256 vit_large_patch16_siglip_gap_384
     vit_so400m_patch14_siglip_gap_224 vit_so400m_patch14_siglip_gap_378
     vit_so400m_patch14_siglip_gap_384 vit_so400m_patch14_siglip_gap_448
     vit_so400m_patch14_siglip_gap_896"""),
    ({**_GAP, **_TANH, "num_classes": 0}, """
     vit_base_patch32_siglip_gap_256 vit_large_patch16_siglip_gap_512 vit_so400m_patch16_siglip_gap_256
     vit_so400m_patch16_siglip_gap_384 vit_so400m_patch16_siglip_gap_512
     vit_giantopt_patch16_siglip_gap_256 vit_giantopt_patch16_siglip_gap_384"""),
    ({**_REG_GAP, **_SCALE, "reg_tokens": 1}, """
     vit_wee_patch16_reg1_gap_256 vit_little_patch16_reg1_gap_256 vit_medium_patch16_reg1_gap_256
     vit_betwixt_patch16_reg1_gap_256"""),
    ({**_REG_GAP, **_SCALE, "reg_tokens": 4}, """
     vit_little_patch16_reg4_gap_256 vit_medium_patch16_reg4_gap_256 vit_mediumd_patch16_reg4_gap_256
     vit_mediumd_patch16_reg4_gap_384 vit_betwixt_patch16_reg4_gap_256 vit_betwixt_patch16_reg4_gap_384"""),
    ({**_REG_GAP, "reg_tokens": 4}, "vit_base_patch16_reg4_gap_256"),
    ({**_GAP, "reg_tokens": 4}, "vit_so150m_patch16_reg4_gap_256 vit_so150m_patch16_reg4_gap_384"),
    ({"class_token": False, "global_pool": "map", "reg_tokens": 4}, "vit_so150m_patch16_reg4_map_256"),
    ({**_AVG, **_SCALE, "reg_tokens": 1, "qkv_bias": False}, """
     vit_so150m2_patch16_reg1_gap_256 vit_so150m2_patch16_reg1_gap_384 vit_so150m2_patch16_reg1_gap_448"""),
    (_BEIT, "beit3_base_patch16_224 beit3_large_patch16_224"),
    ({"img_size": 448, "init_values": 0.1, "final_norm": False, "dynamic_img_size": True},
     "vit_intern300m_patch14_448"),
    ({**_BEIT, "mlp_ratio": 4.3637}, "beit3_giant_patch14_224 beit3_giant_patch14_336"),
]  # fmt: skip

# For tests and demonstrations.
_TEST = {
    "img_size": 160,
    "embed_dim": 64,
    "depth": 6,
    "num_heads": 2,
    "mlp_ratio": 3,
    "dynamic_img_size": True,
}
_TEST_VARIANTS: dict[str, dict[str, Any]] = {
    "test_vit": _TEST,
    "test_vit2": {**_TEST, **_AVG, **_SCALE, "depth": 8, "reg_tokens": 1},
    "test_vit3": {**_SCALE, "img_size": 160, "embed_dim": 96, "depth": 9, "num_heads": 3, "mlp_ratio": 2,
                  "class_token": False, "reg_tokens": 1, "global_pool": "map", "pool_include_prefix": True},
}  # fmt: skip


def variants() -> dict[str, dict[str, Any]]:
    """Every known variant: its name, and the fields of :class:`ViTConfig` that it sets."""
    found = dict(_TEST_VARIANTS)
    for recipe, names in _VARIANTS:
        for name in names.split():
            match = re.fullmatch(
                r"[a-z]+3?_([a-z0-9]+)(?:_distilled)?(?:_patch(\d+)_(.*?)_?(\d+)?(?:_miil)?)?", name
            )
            assert match
            size, patch, rest, image = match.group(1, 2, 3, 4)
            width, depth, heads, ratio = SIZES["plus" if (rest or "").startswith("plus") else size]
            found[name] = {
                "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": ratio,
                "patch_size": int(patch or 0), "img_size": int(image or 0), **recipe,
            }  # fmt: skip
    return found


def nearest_variant(config: ViTConfig) -> tuple[str, dict[str, Any]]:
    """The known variant that differs least from a config, and what differs.

    The norm's eps, the kind of MLP and distillation weigh most, because timm has no other place for them.
    """

    def changes(name: str) -> dict[str, Any]:
        base = ViTConfig.named(name)
        fields = [f.name for f in dataclasses.fields(base)]
        return {f: getattr(config, f) for f in fields if getattr(config, f) != getattr(base, f)}

    def distance(changed: dict[str, Any]) -> int:
        return len(changed) + 100 * len({"norm_eps", "mlp_layer", "distilled"} & changed.keys())

    found = {name: changes(name) for name in variants()}
    name = min(found, key=lambda n: distance(found[n]))
    # timm would take these from the variant or from elsewhere: always say them.
    said = ("img_size", "in_chans", "num_classes", "global_pool", "dynamic_img_size")
    return name, {**{f: getattr(config, f) for f in said}, **found[name]}
