# SPDX-License-Identifier: Apache-2.0
"""``vision-accel train <task>``."""

import os
from typing import TYPE_CHECKING, Any

import vision_accel as va
from vision_accel._suggest import did_you_mean
from vision_accel.cli._options import parse

if TYPE_CHECKING:
    from vision_accel.train import RunResult

TASKS = {
    "vit": "train or fine-tune a ViT classifier on a folder with one folder of images per class",
    "autoencoder-kl": "train or fine-tune an autoencoder on the images below a folder",
    "clip": "train or fine-tune a CLIP or SigLIP on captioned images (folder, .csv, .tsv, webdataset .tar)",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {},
    "autoencoder-kl": {
        "task": "autoencode",
        "model": {"name": "autoencoder_kl_sd"},
        "augment": {"crop": "random"},
        "train": {"out": "runs/autoencoder_kl"},
        "optim": {"lr": 4.5e-6},
        "schedule": {"name": "constant"},
    },
    "clip": {  # open_clip's
        "task": "contrastive",
        "model": {"name": "ViT-B-32"},
        "augment": {"scale": [0.9, 1.0], "flip": 0},
        "train": {"out": "runs/clip", "epochs": 32},
        "optim": {"lr": 5e-4, "weight_decay": 0.2, "betas": [0.9, 0.98], "eps": 1e-6},
    },
}
USAGE = "usage: vision-accel train TASK [OPTIONS]\n\n" + "\n".join(
    f"  {t:<14}  {text}" for t, text in TASKS.items()
)


def run(argv: list[str]) -> int:
    """Run the command."""
    if not argv or argv[0] in {"-h", "--help"}:
        print(USAGE)
        return 0 if argv else 2
    task = argv[0]
    if task not in TASKS:
        raise ValueError(
            f"unknown task {task!r}{did_you_mean(task, TASKS) or '; there are: ' + ', '.join(TASKS)}"
        )
    text = f"{TASKS[task][0].upper()}{TASKS[task][1:]}."
    result = va.train.fit(
        parse(va.train.Config, argv[1:], f"vision-accel train {task}", text, DEFAULTS[task])
    )
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks
        _report(result)
    return 130 if result.stopped_by == "SIGINT" else 0


def _report(result: "RunResult") -> None:
    if result.stopped_by:
        print(f"stopped by {result.stopped_by} after step {result.step}; continue with --train.resume")
        return
    scores = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items() if value is not None)
    print(f"{result.step} steps  {scores}  model: {result.run_dir / 'model'}")
    if result.skipped_steps:
        print(f"{result.skipped_steps} steps skipped: their gradients were NaN or infinite")
    if result.bad_samples:
        print(f"{result.bad_samples} files could not be read: {result.run_dir / 'bad_samples.jsonl'}")
