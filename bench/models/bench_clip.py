# SPDX-License-Identifier: Apache-2.0
import contextlib
import importlib
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import vision_accel as va
from bench import peers
from bench.common import Workload

# ViT-B-32 with random weights. "full" texts have 77 tokens; "short" ones 12 and padding, like captions.
CASES = {
    "ViT-B-32 images, batch 1": {"part": "image", "batch": 1},
    "ViT-B-32 images, batch 8": {"part": "image", "batch": 8},
    "ViT-B-32 full texts, batch 32": {"part": "text", "batch": 32, "length": 77},
    "ViT-B-32 short texts, batch 32": {"part": "text", "batch": 32, "length": 12},
}


class Encode(nn.Module):
    """One tower of a peer, as a module of one tensor."""

    def __init__(self, model: Any, part: str, library: str) -> None:
        super().__init__()
        self.model, self.part, self.library = model, part, library

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.library == "open_clip":
            return self.model.encode_image(x) if self.part == "image" else self.model.encode_text(x)
        if self.part == "image":
            pooled = self.model.vision_model(pixel_values=x).pooler_output
            return self.model.visual_projection(pooled)
        return self.model.text_projection(self.model.text_model(input_ids=x).pooler_output)


def make(part: str, batch: int, length: int = 77) -> Workload:
    torch.manual_seed(0)
    libraries = importlib.import_module("tests.reference_libs")
    open_clip, transformers = libraries.open_clip(), libraries.transformers()
    model = va.create_model("ViT-B-32").eval()
    with tempfile.TemporaryDirectory() as folder:
        va.save(model, f"{folder}/hf")
        va.save(model, f"{folder}/open_clip", layout="open_clip")
        theirs = transformers.CLIPModel.from_pretrained(f"{folder}/hf").eval()
        native = open_clip.create_model(f"local-dir:{folder}/open_clip").eval()
    if part == "image":
        x = torch.randn(batch, 3, 224, 224)
    else:
        x = torch.randint(1, 40000, (batch, 77))
        x[:, length - 1 :] = 0
        x[:, length - 1] = 49407

    def ours() -> torch.Tensor:
        with torch.inference_mode():
            if part == "image":
                return model.encode_image(x, normalize=False)
            return model.encode_text(x, normalize=False)

    plain = Encode(native, part, "open_clip").eval()
    return Workload(
        ours,
        {
            "transformers eager": peers.eager(Encode(theirs, part, "transformers").eval(), x),
            "open_clip eager": peers.eager(plain, x),
        },
        more_peers=lambda: _engines(plain, x),
        flops=_flops(plain, x),
        images=batch,
    )


@contextlib.contextmanager
def _transparent_attention() -> Iterator[None]:
    """Without torch's fused nn.MultiheadAttention, into which neither tracing nor counting can see."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _engines(module: nn.Module, x: torch.Tensor) -> Any:
    with _transparent_attention():
        return peers.engines(module, x)


def _flops(module: nn.Module, x: torch.Tensor) -> float:
    """Floating-point operations of the peer's graph: what we save is not subtracted."""
    from torch.utils.flop_counter import FlopCounterMode

    with _transparent_attention(), FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return float(counter.get_total_flops())


@pytest.mark.parametrize("case", CASES)
def bench_clip(measure, case):
    measure(make(**CASES[case]))
