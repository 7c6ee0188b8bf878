# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.cuda [--case TEXT] [--peers] [--minutes M] [--json FILE]``: our times and torch's.

See ``cuda_timing`` for how they are taken.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import vision_accel as va
from bench import common, cuda_products, peers
from bench.common import OURS, Call, Workload
from bench.cuda_products import BF16, DEVICE, compiled, randn
from bench.cuda_timing import copy_gbytes, measure, peak_gflops
from vision_accel import ops
from vision_accel.infer import _graph
from vision_accel.train.optim import AdamW

SAME = ("device", "driver", "torch", "commit")  # of results that may stand in one file


# Workloads ----------------------------------------------------------------------------------------------


def product(m: int, n: int, k: int) -> Workload:
    """Nothing but the product."""
    x, weight = randn(m, k), randn(n, k) / k**0.5

    def cublaslt() -> torch.Tensor:
        before = torch.backends.cuda.preferred_blas_library()
        torch.backends.cuda.preferred_blas_library("cublaslt")
        try:
            return functional.linear(x, weight)
        finally:
            torch.backends.cuda.preferred_blas_library(before)

    calls = {
        OURS: lambda: ops.linear(x, weight),
        "cuBLASLt": cublaslt,
        "torch": lambda: functional.linear(x, weight),
    }
    calls = {name: torch.inference_mode()(call) for name, call in calls.items()}
    return Workload(calls.pop(OURS), calls, flops=2.0 * m * n * k, tolerance=3e-2)


def linear(
    m: int, n: int, k: int, activation: str = "none", residual: bool = False, backward: bool = False
) -> Workload:
    x, weight, bias = randn(m, k), randn(n, k) / k**0.5, randn(n)
    r = randn(m, n) if residual else None

    def torch_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, weight, bias)
        if activation == "gelu":
            y = functional.gelu(y)
        return y if r is None else r + y

    def ours(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ops.linear(x, weight, bias, activation, r)

    flops = 2.0 * m * n * k
    if not backward:

        def call(fn: Callable[..., Any]) -> Call:
            return torch.inference_mode()(lambda: fn(x, weight, bias))

        return Workload(
            call(ours),
            {"torch": call(torch_linear)},
            lambda: ({"torch.compile": call(compiled(torch_linear))}, {}),
            flops=flops,
            tolerance=3e-2,
        )
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    dy = randn(m, n)

    def grads(fn: Callable[..., Any]) -> Call:
        y = fn(*leaves)
        return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

    return Workload(grads(ours), {"torch": grads(torch_linear)}, flops=2 * flops, tolerance=3e-2)


def on_hopper(call: Call) -> Call:
    """The same with the attention kernels for sm_90a, which have to be asked for."""

    def run() -> Any:
        os.environ["VISION_ACCEL_HOPPER_ATTENTION"] = "1"
        try:
            return call()
        finally:
            del os.environ["VISION_ACCEL_HOPPER_ATTENTION"]

    return run


def attention(batch: int, n: int, heads: int = 12, dim: int = 64, backward: bool = False) -> Workload:
    qkv = randn(batch, n, 3 * heads * dim).requires_grad_(backward)

    def sdpa(backend: SDPBackend) -> Callable[[], torch.Tensor]:
        def forward() -> torch.Tensor:
            q, k, v = qkv.view(batch, n, 3, heads, dim).permute(2, 0, 3, 1, 4).unbind(0)
            with sdpa_kernel(backend):
                y = functional.scaled_dot_product_attention(q, k, v)
            return y.transpose(1, 2).reshape(batch, n, heads * dim)

        return forward

    forwards = {OURS: lambda: ops.attention_qkv(qkv, heads)} | {
        f"SDPA {b.name.split('_')[0].lower()}": sdpa(b)
        for b in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    }
    dy = randn(batch, n, heads * dim)

    def call(forward: Callable[[], torch.Tensor]) -> Call:
        if not backward:
            return torch.inference_mode()(forward)
        y = forward()
        return lambda: torch.autograd.grad(y, qkv, dy, retain_graph=True)

    calls, absent = {}, {}
    for name, forward in forwards.items():
        try:
            calls[name] = call(forward)
        except RuntimeError as error:  # a back end that does not take this GPU or shape
            absent[name] = str(error).splitlines()[0]
    if torch.cuda.get_device_capability()[0] == 9 and dim <= 128:
        calls[f"{OURS}, sm_90a attention"] = on_hopper(calls[OURS])
    flops, size = 4.0 * batch * heads * n * n * dim, 2.0 * batch * n * heads * dim
    return Workload(
        calls.pop(OURS),
        calls,
        lambda: ({}, absent),
        flops=flops * (2.5 if backward else 1),
        bytes=size * (8 if backward else 4),
        tolerance=3e-2,
    )


def layer_norm(rows: int, dim: int) -> Workload:
    x, r, weight, bias = randn(rows, dim), randn(rows, dim), randn(dim), randn(dim)

    def torch_norm(x: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s = x + r
        return functional.layer_norm(s, (dim,), weight, bias), s

    def call(fn: Callable[..., Any]) -> Call:
        return torch.inference_mode()(lambda: fn(x, r))

    return Workload(
        call(lambda x, r: ops.layer_norm(x, weight, bias, residual=r)),
        {"torch": call(torch_norm)},
        lambda: ({"torch.compile": call(compiled(torch_norm))}, {}),
        bytes=8.0 * rows * dim,
        tolerance=3e-2,
    )


def vit(batch: int, train: bool = False) -> Workload:
    plain = peers.PlainViT(768, 12, 12, 16).to(DEVICE)
    model = va.create_model("vit_base_patch16_224").to(DEVICE)
    model.load_state_dict(plain.state_dict())
    x = torch.randn(batch, 3, 224, 224, device=DEVICE)
    flops = batch * plain.flops()
    if train:
        return _vit_step(plain, model, x, flops)
    plain, model, x = plain.to(BF16).eval(), model.to(BF16).eval(), x.to(BF16)

    def call(fn: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        return torch.inference_mode()(lambda: fn(x))

    ours: Callable[[torch.Tensor], torch.Tensor] = lambda x: _graph.run(model, "logits", model, x)  # noqa: E731
    torch.compiler.reset()
    return Workload(
        call(ours),
        {"torch": call(plain)},
        lambda: ({"torch.compile max-autotune": call(torch.compile(plain, mode="max-autotune"))}, {}),
        flops=flops,
        images=batch,
        tolerance=5e-2,
    )


def _vit_step(plain: torch.nn.Module, model: torch.nn.Module, x: torch.Tensor, flops: float) -> Workload:
    target = torch.randint(1000, (len(x),), device=DEVICE)

    def step(module: Any, parameters: Any, loss_fn: Any, optimizer: Any) -> Call:
        def call() -> Any:
            with torch.autocast(DEVICE, BF16):
                loss = loss_fn(module(x), target)
            loss.backward()
            gradient = next(parameters()).grad
            optimizer.step()
            optimizer.zero_grad()
            return loss, gradient

        return call

    def torch_step(module: torch.nn.Module, call: Any) -> Call:
        optimizer = torch.optim.AdamW(module.parameters(), fused=True)
        return step(call, module.parameters, functional.cross_entropy, optimizer)

    twin = copy.deepcopy(plain)
    return Workload(
        step(model.train(), model.parameters, ops.cross_entropy, AdamW(model.parameters())),
        {"torch": torch_step(plain.train(), plain)},
        lambda: ({"torch.compile": torch_step(twin.train(), compiled(twin))}, {}),
        flops=3 * flops,
        images=len(x),
        tolerance=8e-2,
    )


def cases() -> dict[str, Callable[[], Workload]]:
    found: dict[str, Callable[[], Workload]] = {}
    for name, dim in (("ViT-B", 768), ("ViT-L", 1024)):
        for batch in (1, 64, 256):
            m = 197 * batch
            shapes: dict[str, dict[str, Any]] = {
                "qkv": {"n": 3 * dim, "k": dim},
                "proj + residual": {"n": dim, "k": dim, "residual": True},
                "fc1 + gelu": {"n": 4 * dim, "k": dim, "activation": "gelu"},
                "fc2 + residual": {"n": dim, "k": 4 * dim, "residual": True},
            }
            for part, shape in shapes.items():
                found[f"linear {name} {part}, batch {batch}"] = lambda m=m, s=shape: linear(m, **s)  # type: ignore[misc]
                if batch > 1:
                    found[f"product {name} {part}, batch {batch}"] = lambda m=m, s=shape: product(  # type: ignore[misc]
                        m, s["n"], s["k"]
                    )
                if batch == 64:
                    found[f"linear {name} {part}, batch {batch}, backward"] = lambda m=m, s=shape: linear(  # type: ignore[misc]
                        m, **s, backward=True
                    )
    for n, batch in ((50, 64), (77, 64), (197, 64), (197, 256), (257, 64), (257, 256), (577, 64)):
        for backward in (False, True):
            label = f"attention N={n}, batch {batch}{', backward' * backward}"
            found[label] = lambda n=n, a=batch, b=backward: attention(a, n, backward=b)  # type: ignore[misc]
    for n in (4096, 16_384):  # the autoencoder's at 512 and 1024 pixels
        for backward in (False, True):
            label = f"attention N={n}, one head of 512{', backward' * backward}"
            found[label] = lambda n=n, b=backward: attention(1, n, 1, 512, b)  # type: ignore[misc]
    for dim in (768, 1024):
        found[f"layer_norm + residual, {dim}"] = lambda d=dim: layer_norm(197 * 256, d)  # type: ignore[misc]
    for batch in (1, 8, 256):
        found[f"ViT-B/16, batch {batch}"] = lambda b=batch: vit(b)  # type: ignore[misc]
    found["ViT-B/16 training step, batch 256"] = lambda: vit(256, train=True)
    return found | cuda_products.cases()


def environment() -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    commit = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    described = subprocess.run(
        commit, cwd=common.ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver,
        "cuda": torch.version.cuda,
        "built": va.info()["cuda"],
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "peak_gflops": round(peak_gflops()),
        "copy_gbytes": round(copy_gbytes()),
        "commit": os.environ.get("VISION_ACCEL_COMMIT") or described or "unknown",
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cuda", description="Time vision_accel and torch on a GPU."
    )
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    parser.add_argument("--peers", action="store_true", help="also torch.compile with autotuning (minutes)")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each implementation")
    parser.add_argument(
        "--minutes", type=float, help="begin no case later; run again, cases in the file are not timed again"
    )
    parser.add_argument("--json", type=Path, help="add the results to those of the same commit in this file")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU on this machine: nothing was timed", file=sys.stderr)
        return 1
    report: dict[str, Any] = {"environment": environment(), "benchmarks": {}}
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text())
        if all(before["environment"].get(k) == report["environment"][k] for k in SAME):
            report["benchmarks"] = before["benchmarks"]
    begun, left = time.monotonic(), []
    print("  ".join(f"{k}: {v}" for k, v in report["environment"].items()), flush=True)
    failed = []
    for name, make in cases().items():
        if args.case not in name:
            continue
        if args.minutes is not None:
            done = report["benchmarks"].get(name)
            if done and done["peers"] >= args.peers:
                continue
            if time.monotonic() - begun > 60 * args.minutes:
                left.append(name)
                continue
        torch.manual_seed(0)
        torch.cuda.empty_cache()
        try:
            record = measure(make(), args.peers, args.rounds)
        except (common.Mismatch, RuntimeError, ValueError) as error:
            failed.append(f"{name}: {error}")
            continue
        report["benchmarks"][name] = record | {"peers": args.peers}
        print(common.table({name: record}), flush=True)
        if args.json:  # after every case: a run that is cut off leaves what it measured
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    if left:
        print(f"\n{len(left)} cases are left: run this again")
    print("\n".join(["", *failed]) if failed else f"{len(report['benchmarks'])} cases")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
