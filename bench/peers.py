# SPDX-License-Identifier: Apache-2.0
"""What we are compared with: the same weights in plain torch, and that module in other engines.

Everyone gets the threads that torch is set to, float32 arithmetic and the same input array.
"""

import contextlib
import io
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.common import Call


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class PlainViT(nn.Module):
    """ViT with a class token as everybody writes it in torch; parameter names are timm's and ours."""

    def __init__(
        self, dim: int, depth: int, heads: int, patch: int, image: int = 224, classes: int = 1000
    ) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, patch)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, dim) * 0.02)
        self.blocks = nn.ModuleList([_Block(dim, heads, 4 * dim) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])

    def flops(self) -> float:
        """Floating-point operations of the matrix products in one image's forward, every token counted."""
        tokens, dim = self.pos_embed.shape[1:]
        block = 24 * tokens * dim * dim + 4 * tokens * tokens * dim
        embed = 2 * (tokens - 1) * self.patch_embed["proj"].weight.numel()
        return float(len(self.blocks) * block + embed + 2 * self.head.weight.numel())


class PlainClipVision(nn.Module):
    """The image tower of CLIP around the blocks of ``PlainViT``; parameter names are ours."""

    def __init__(self, dim: int, depth: int, heads: int, patch: int, embed: int) -> None:
        super().__init__()
        vit = self.visual = PlainViT(dim, depth, heads, patch)
        vit.patch_embed["proj"] = nn.Conv2d(3, dim, patch, patch, bias=False)
        vit.norm_pre = nn.LayerNorm(dim)
        del vit.head
        self.visual_projection = nn.Linear(dim, embed, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        v = self.visual
        x = v.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = v.norm_pre(torch.cat((v.cls_token.expand(x.shape[0], -1, -1), x), 1) + v.pos_embed)
        for block in v.blocks:
            x = block(x)
        return self.visual_projection(v.norm(x[:, 0]))


class _Resnet(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, before, 1e-6), nn.GroupNorm(32, after, 1e-6)
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, 1, 1), nn.Conv2d(after, after, 3, 1, 1)
        self.conv_shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(functional.silu(self.norm2(h)))


class _SpatialAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(32, width, 1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (part(tokens)[:, None] for part in (self.to_q, self.to_k, self.to_v))
        y = self.to_out[0](functional.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + y.transpose(1, 2).reshape(x.shape)


class PlainDecoder(nn.Module):
    """The decoder of Stable Diffusion's autoencoder as diffusers writes it; names are diffusers' and ours."""

    def __init__(self) -> None:
        super().__init__()
        widths = (512, 512, 512, 256, 128)
        self.conv_in = nn.Conv2d(4, 512, 3, 1, 1)
        self.mid_block = nn.ModuleDict(
            {
                "resnets": nn.ModuleList([_Resnet(512, 512), _Resnet(512, 512)]),
                "attentions": nn.ModuleList([_SpatialAttention(512)]),
            }
        )
        self.up_blocks = nn.ModuleList()
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            resnets = [_Resnet(before, after), _Resnet(after, after), _Resnet(after, after)]
            up = [nn.ModuleDict({"conv": nn.Conv2d(after, after, 3, 1, 1)})] if i < 3 else []
            block = {"resnets": nn.ModuleList(resnets), "upsamplers": nn.ModuleList(up)}
            self.up_blocks.append(nn.ModuleDict(block))
        self.conv_norm_out = nn.GroupNorm(32, 128, 1e-6)
        self.conv_out = nn.Conv2d(128, 3, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block["resnets"][0](self.conv_in(z))
        x = self.mid_block["resnets"][1](self.mid_block["attentions"][0](x))
        for block in self.up_blocks:
            for resnet in block["resnets"]:
                x = resnet(x)
            for up in block["upsamplers"]:
                x = up["conv"](functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(functional.silu(self.conv_norm_out(x)))


def eager(module: nn.Module, x: Tensor) -> Call:
    """The module itself."""

    def call() -> Tensor:
        with torch.inference_mode():
            return module(x)  # type: ignore[no-any-return]

    return call


def compiled(module: nn.Module, x: Tensor) -> Call:
    """torch.compile with inductor; freezing lets it prepack the weights."""
    import torch._inductor.config as inductor

    torch.compiler.reset()
    function = torch.compile(module)

    def call() -> Tensor:
        with torch.no_grad():
            return function(x)  # type: ignore[no-any-return]

    with inductor.patch(freezing=True):
        call()  # compiles
    return call


def openvino(module: nn.Module, x: Tensor) -> Call:
    """OpenVINO's CPU plugin, tuned for latency, kept from using bfloat16."""
    import openvino as ov

    config = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = ov.convert_model(module, example_input=x, input=[tuple(x.shape)])
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    array = x.numpy()
    return lambda: request.infer({0: array}, share_inputs=True, share_outputs=True)[0]


def onnxruntime(module: nn.Module, x: Tensor) -> Call:
    """ONNX Runtime's CPU provider with all graph optimisations, from torch's ONNX exporter."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.onnx")
        torch.onnx.export(module, (x,), file, dynamo=True, input_names=["x"], output_names=["y"])
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    array = x.numpy()
    return lambda: session.run(["y"], {"x": array})[0]


ENGINES: dict[str, Callable[[nn.Module, Tensor], Call]] = {
    "torch.compile": compiled,
    "OpenVINO": openvino,
    "ONNX Runtime": onnxruntime,
}


def engines(module: nn.Module, x: Tensor) -> tuple[dict[str, Call], dict[str, str]]:
    """``module`` in every engine that is installed, and why the others are missing."""
    built, absent = {}, {}
    for name, build in ENGINES.items():
        try:
            with _quiet():
                built[name] = build(module, x)
        except ImportError as error:
            absent[name] = f"not installed ({error})"
    return built, absent


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print progress and warn about their own internals."""
    out: Any = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        warnings.simplefilter("ignore")
        yield
