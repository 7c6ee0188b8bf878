# SPDX-License-Identifier: Apache-2.0
"""What a CLIP can be: its options, and the known configurations by name. Needs no torch."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

from vision_accel._options import check_fields, check_names, unknown_model
from vision_accel.models.vit_config import ACTIVATIONS, SIZES, ViTConfig, variants

TEXT_POOLS = ("argmax", "eos", "first", "last")


@dataclass(frozen=True)
class TextConfig:
    """Everything that shapes the text tower. The defaults are those of Radford et al. 2021."""

    context_length: int = 77
    vocab_size: int = 49408
    embed_dim: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0
    act_layer: str = "gelu"
    norm_eps: float = 1e-5
    init_values: float | None = None  # initial layer scale; None: no layer scale
    causal: bool = True
    pool: str = "argmax"  # argmax: at the largest id; eos: at the first eos_id; first; last
    eos_id: int = 49407
    attn_drop_rate: float = 0.0

    def __post_init__(self) -> None:
        check_fields("text", self)
        for name in ("context_length", "vocab_size", "embed_dim", "num_heads"):
            _require("text", self, name, getattr(self, name) > 0, "positive")
        _require("text", self, "depth", self.depth >= 0, "0 or more")
        _require(
            "text", self, "num_heads", self.embed_dim % self.num_heads == 0, f"a divisor of {self.embed_dim}"
        )
        _require("text", self, "mlp_ratio", self.hidden_dim > 0, "positive")
        _require("text", self, "pool", self.pool in TEXT_POOLS, f"one of {', '.join(TEXT_POOLS)}")
        _require("text", self, "act_layer", self.act_layer in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
        _require("text", self, "attn_drop_rate", 0 <= self.attn_drop_rate <= 1, "between 0 and 1")

    @property
    def hidden_dim(self) -> int:
        """Outputs of fc1."""
        return int(self.embed_dim * self.mlp_ratio)


_VISION = ViTConfig(num_classes=0, patch_size=(32, 32), pre_norm=True, norm_eps=1e-5)


@dataclass(frozen=True)
class CLIPConfig:
    """Everything that shapes a CLIP or a SigLIP."""

    embed_dim: int = 512  # of the space that images and texts share
    vision: ViTConfig = _VISION
    text: TextConfig = field(default_factory=TextConfig)
    vision_proj: str = "linear"  # or "none": the pooled features are the embedding
    vision_proj_bias: bool = False
    text_proj: str = "linear"  # or "none"
    text_proj_bias: bool = False
    init_logit_scale: float = math.log(1 / 0.07)
    init_logit_bias: float | None = None  # given: sigmoid loss (SigLIP); None: softmax loss (CLIP)

    def __post_init__(self) -> None:
        check_fields("CLIP", self)
        _require("CLIP", self, "embed_dim", self.embed_dim > 0, "positive")
        for tower in ("vision", "text"):
            kind = getattr(self, f"{tower}_proj")
            _require("CLIP", self, f"{tower}_proj", kind in ("linear", "none"), "linear or none")
            width = getattr(self, tower).embed_dim
            if kind == "none" and width != self.embed_dim:
                raise ValueError(
                    f"CLIP: without {tower}_proj embed_dim must be the tower's width {width},"
                    f" got {self.embed_dim}"
                )
        if self.vision.num_classes or not self.vision.global_pool:
            raise ValueError("CLIP: vision must have num_classes=0 and a global_pool")

    @classmethod
    def named(cls, name: str, **changes: Any) -> "CLIPConfig":
        """The config of a known variant, with some fields changed; an unknown name is a ValueError."""
        known = clip_variants()
        if name not in known:
            raise unknown_model(name, known)
        return cls().replace(**known[name]).replace(**changes)

    def replace(self, **changes: Any) -> "CLIPConfig":
        """A copy with some fields changed.

        ``vision`` and ``text`` take a dictionary of changes. ``"vision.depth"`` names a field of a tower,
        ``img_size`` is ``"vision.img_size"`` and ``context_length`` is ``"text.context_length"``. An unknown
        field is a TypeError that names the nearest one.
        """
        plain: dict[str, Any] = {}
        towers: dict[str, dict[str, Any]] = {"vision": {}, "text": {}}
        for name, value in changes.items():
            tower, _, option = _SHORT.get(name, name).partition(".")
            if tower in towers and option:
                towers[tower][option] = value
            elif tower in towers and isinstance(value, dict):
                towers[tower] |= value
            else:
                plain[name] = value
        check_names("CLIP", plain, [*(f.name for f in dataclasses.fields(self)), *_SHORT])
        for tower, options in towers.items():
            if options:
                base = plain.get(tower, getattr(self, tower))
                plain[tower] = _replaced(base, tower, options)
        return dataclasses.replace(self, **plain)


_SHORT = {
    "img_size": "vision.img_size",
    "patch_drop_rate": "vision.patch_drop_rate",
    "drop_path_rate": "vision.drop_path_rate",
    "context_length": "text.context_length",
}


def _replaced(base: Any, tower: str, options: dict[str, Any]) -> Any:
    if isinstance(base, ViTConfig):
        return base.replace(**options)
    check_names(f"CLIP's {tower} tower", options, [f.name for f in dataclasses.fields(base)])
    return dataclasses.replace(base, **options)


def _require(what: str, config: Any, name: str, condition: bool, rule: str) -> None:
    if not condition:
        raise ValueError(f"{what}: {name} must be {rule}, got {getattr(config, name)!r}")


# Letters of a name -> size of the image tower in SIZES, embedding width, and width, heads, depth of the text
# tower. Radford et al. 2021, arXiv:2103.00020; H, g and bigG: Cherti et al. 2022, arXiv:2212.07143.
_SIZES: dict[str, tuple[str, int, tuple[int, int, int]]] = {
    "S": ("small", 384, (384, 6, 12)),
    "M": ("medium", 512, (512, 8, 12)),
    "B": ("base", 512, (512, 8, 12)),
    "plus": ("plus", 640, (640, 10, 12)),
    "L": ("large", 768, (768, 12, 12)),
    "H": ("huge", 1024, (1024, 16, 24)),
    "g": ("giant", 1024, (1024, 16, 24)),
    "bigG": ("gigantic", 1280, (1280, 20, 32)),
}
# Zhai et al. 2023, arXiv:2303.15343: size of the image tower, and width, heads, depth of the text tower.
_SIGLIP_SIZES: dict[str, tuple[str, tuple[int, int, int]]] = {
    "B": ("base", (768, 12, 12)),
    "L": ("large", (1024, 16, 24)),
    "SO400M": ("so400m", (1152, 16, 27)),
    "gopt": ("giantopt", (1152, 16, 27)),
}

# open_clip's names. "-quickgelu" may follow: the weights of OpenAI, MetaCLIP and DFN need it. "-worldwide"
# is MetaCLIP 2, arXiv:2507.22062.
_NAMES = """
    ViT-S-32 ViT-S-16 ViT-M-32 ViT-M-16 ViT-B-32 ViT-B-32-256 ViT-B-32-plus-256 ViT-B-16 ViT-B-16-plus-240
    ViT-L-16 ViT-L-16-320 ViT-L-14 ViT-L-14-280 ViT-L-14-336 ViT-L-14-worldwide ViT-H-16 ViT-H-14
    ViT-H-14-378 ViT-H-14-worldwide ViT-H-14-worldwide-378 ViT-g-14 ViT-bigG-14 ViT-bigG-14-worldwide
    ViT-bigG-14-worldwide-378
""".split()  # noqa: SIM905
# CLIPA, arXiv:2306.15658, trained on DataComp.
_CLIPA_NAMES = [f"ViT-{size}-14-CLIPA{image}" for size in ("L", "H", "bigG") for image in ("", "-336")]
_SIGLIP_NAMES = """
    ViT-B-16-SigLIP ViT-B-16-SigLIP-256 ViT-B-16-SigLIP-384 ViT-B-16-SigLIP-512 ViT-B-16-SigLIP-i18n-256
    ViT-L-16-SigLIP-256 ViT-L-16-SigLIP-384 ViT-SO400M-14-SigLIP ViT-SO400M-14-SigLIP-378
    ViT-SO400M-14-SigLIP-384 ViT-SO400M-16-SigLIP-i18n-256 ViT-B-32-SigLIP2-256 ViT-B-16-SigLIP2
    ViT-B-16-SigLIP2-256 ViT-B-16-SigLIP2-384 ViT-B-16-SigLIP2-512 ViT-L-16-SigLIP2-256 ViT-L-16-SigLIP2-384
    ViT-L-16-SigLIP2-512 ViT-SO400M-14-SigLIP2 ViT-SO400M-14-SigLIP2-378 ViT-SO400M-16-SigLIP2-256
    ViT-SO400M-16-SigLIP2-384 ViT-SO400M-16-SigLIP2-512 ViT-gopt-16-SigLIP2-256 ViT-gopt-16-SigLIP2-384
""".split()  # noqa: SIM905
# Hugging Face's names of OpenAI's and Google's checkpoints -> open_clip's.
_ALIASES = {
    "clip_vit_base_patch32": "ViT-B-32-quickgelu",
    "clip_vit_base_patch16": "ViT-B-16-quickgelu",
    "clip_vit_large_patch14": "ViT-L-14-quickgelu",
    "clip_vit_large_patch14_336": "ViT-L-14-336-quickgelu",
    "siglip_base_patch16_224": "ViT-B-16-SigLIP",
    "siglip_base_patch16_256": "ViT-B-16-SigLIP-256",
    "siglip_base_patch16_384": "ViT-B-16-SigLIP-384",
    "siglip_base_patch16_512": "ViT-B-16-SigLIP-512",
    "siglip_large_patch16_256": "ViT-L-16-SigLIP-256",
    "siglip_large_patch16_384": "ViT-L-16-SigLIP-384",
    "siglip_so400m_patch14_224": "ViT-SO400M-14-SigLIP",
    "siglip_so400m_patch14_384": "ViT-SO400M-14-SigLIP-384",
}
_TINY = {  # for tests and demonstrations
    "embed_dim": 64,
    "vision": {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2},
    "text": {"context_length": 16, "vocab_size": 512, "embed_dim": 48, "depth": 2, "num_heads": 2},
}


def clip_variants() -> dict[str, dict[str, Any]]:
    """Every known variant: its name, and the changes of :class:`CLIPConfig` that make it."""
    found: dict[str, dict[str, Any]] = {"test_clip": _TINY}
    for name in _NAMES:
        found[name] = _clip(name, "gelu")
        found[f"{name}-quickgelu"] = _clip(name, "quick_gelu")
    found |= {name: _clipa(name) for name in _CLIPA_NAMES}
    found |= {name: _siglip(name) for name in _SIGLIP_NAMES}
    for alias, name in _ALIASES.items():
        config = found[name]
        if alias.startswith("siglip"):  # transformers approximates by tanh where open_clip does not
            tanh = {"act_layer": "gelu_tanh"}
            config = config | {"vision": config["vision"] | tanh, "text": config["text"] | tanh}
        found[alias] = config
    return found


def _clip(name: str, activation: str) -> dict[str, Any]:
    match = re.fullmatch(r"ViT-(\w+)-(\d+)(-plus)?(-worldwide)?(?:-(\d+))?", name)
    assert match
    size, patch, plus, worldwide, image = match.groups()
    tower, embed_dim, (width, heads, depth) = _SIZES["plus" if plus else size]
    text = {"embed_dim": width, "num_heads": heads, "depth": depth, "act_layer": activation}
    if worldwide:
        vocab_size, eos_id = (250100, 1) if size == "L" else (901629, 2)
        text |= {"vocab_size": vocab_size, "pool": "eos", "eos_id": eos_id}
    vision = _tower(tower, patch, image) | {"act_layer": activation}
    return {"embed_dim": embed_dim, "vision": vision, "text": text}


def _clipa(name: str) -> dict[str, Any]:
    config = _clip(name.replace("-CLIPA", ""), "gelu")
    config["vision"] |= {"pre_norm": False, "global_pool": "avg", "fc_norm": True}
    config["text"] |= {"context_length": 32, "vocab_size": 32000, "causal": False, "pool": "last"}
    return config


def _siglip(name: str) -> dict[str, Any]:
    match = re.fullmatch(r"ViT-(\w+)-(\d+)-SigLIP(2?)(-i18n)?(?:-(\d+))?", name)
    assert match
    size, patch, second, i18n, image = match.groups()
    tower, (width, heads, depth) = _SIGLIP_SIZES[size]
    vision = {
        "pre_norm": False,
        "norm_eps": 1e-6,
        **variants()[f"vit_{tower}_patch{patch}_siglip_{image or 224}"],
    }
    projected = not (i18n and size == "SO400M")
    return {
        "embed_dim": SIZES[tower][0],
        "vision": vision,
        "text": {
            "context_length": 16 if name == "ViT-SO400M-14-SigLIP" else 64,
            "vocab_size": 256000 if second else 250000 if i18n else 32000,
            "embed_dim": width,
            "num_heads": heads,
            "depth": depth,
            "mlp_ratio": SIZES["so400m"][3] if width == 1152 else 4.0,
            "act_layer": "gelu_tanh" if second else "gelu",
            "norm_eps": 1e-6,
            "causal": False,
            "pool": "last",
        },
        "vision_proj": "none",
        "text_proj": "linear" if projected else "none",
        "text_proj_bias": projected,
        "init_logit_bias": -10.0,
    }


def _tower(size: str, patch: str, image: str | None) -> dict[str, Any]:
    width, depth, heads, ratio = SIZES[size]
    return {
        "img_size": int(image or 224),
        "patch_size": int(patch),
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": ratio,
    }
