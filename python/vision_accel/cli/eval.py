# SPDX-License-Identifier: Apache-2.0
"""``vision-accel eval``."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

import vision_accel as va
from vision_accel.cli import SOME_IMAGES_BAD
from vision_accel.cli._images import OnDevice, complain
from vision_accel.cli._options import parse
from vision_accel.data.source import SampleError, Source


@dataclass
class Eval(OnDevice):
    """Top-1 and top-5 accuracy of a classifier on a folder that holds one folder of images per class.

    A CLIP chooses among the names of the folders ("hot_dog" is read as "hot dog").

    The exit code is 3 when some images could not be read; they are not counted.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")] = tyro.MISSING
    """Model directory or Hugging Face hub id."""
    data: Annotated[Positional[str], arg(metavar="DATA")] = tyro.MISSING
    """Folder with one folder per class, or webdataset tars."""
    batch_size: int = 64
    """Images per pass; changes speed and memory, not results."""
    workers: int = 2
    """Processes that decode images (with dali: that read files); 0: none."""
    loader: Literal["builtin", "dali"] = "builtin"
    """What decodes images: the worker processes, or NVIDIA DALI in threads; the pixels are the same."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the arithmetic."""
    max_bad_fraction: float = 0.05
    """Stop with an error when more than this share of the images cannot be read."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """For a CLIP: texts around a label ({}); the embeddings of several are averaged."""
    confusion: Path | None = None
    """Also write a PNG that shows which classes are taken for which."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON."""


def run(argv: list[str]) -> int:
    """Run the command."""
    options = parse(Eval, argv, "vision-accel eval")
    from vision_accel.data.folder import open_images  # noqa: PLC0415  (--help must not wait for torch)
    from vision_accel.models.zero_shot import ZeroShot  # noqa: PLC0415

    folder = open_images(options.data)
    model = va.load(options.model, options.device)
    if isinstance(model, va.CLIP):
        names = [name.replace("_", " ") for name in folder.classes]
        model = ZeroShot(model, folder.classes, options.templates, names=names)
    elif options.templates != Eval.templates:
        raise ValueError(f"--templates: is for a CLIP, and {options.model} is a {type(model).__name__}")
    result = va.train.evaluate(
        model,
        options.data,
        batch_size=options.batch_size,
        workers=options.workers,
        loader=options.loader,
        precision=options.precision,
        max_bad_fraction=options.max_bad_fraction,
    )
    for sample in result.bad:
        complain(sample.file, sample.error)
    if options.json:
        print(json.dumps(dataclasses.asdict(result), indent=2))
    else:
        print(
            f"top-1 {100 * result.top1:.2f} %  top-5 {100 * result.top5:.2f} %  loss {result.loss:.4f}  "
            f"{result.images} images  {result.images_per_s:.1f} images/s"
        )
    if options.confusion:
        _draw_confusion(model, folder, options)
    return SOME_IMAGES_BAD if result.bad else 0


class _Readable(Sequence[bytes]):
    """The images of a source; one that cannot be read is empty, and so reported as no image."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.source.read(index)
        except (OSError, SampleError):
            return b""


def _draw_confusion(model: Any, folder: Source, options: Eval) -> None:
    from vision_accel.train.evaluate import autocast  # noqa: PLC0415

    assert options.confusion is not None
    device = next(model.parameters()).device
    with va.infer.replacing(options.confusion) as file, autocast(device, options.precision):
        results = list(
            va.infer.iter_classify(
                model, _Readable(folder), 1, batch_size=options.batch_size, on_error="skip"
            )
        )
        good = [(folder.classes[folder.labels[i]], r.label) for i, r in enumerate(results) if r.label]
        labels = sorted({*folder.classes, *(found for _, found in good)})
        hits = sum(a == b for a, b in good)
        title = f"{options.model}: {hits} of {len(good)} right"
        va.infer.draw_confusion([a for a, _ in good], [b for _, b in good], labels, title, file)
