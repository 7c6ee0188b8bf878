# SPDX-License-Identifier: Apache-2.0
"""``vision-accel bench data``: images per second of the loaders, and of the others in the same run."""

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tyro.conf import FlagCreatePairsOff

import vision_accel as va
from vision_accel.cli._bench_dali import dali_rows
from vision_accel.cli._options import parse


@dataclass
class BenchData:
    """Measure how fast images are read, decoded and prepared for evaluation, beside other libraries.

    Without --data, JPEGs of 500 x 375 with the statistics of photographs are made, as a folder and as tars.
    Every loader prepares all images once a round; the rounds of all loaders take turns.
    """

    data: str = ""
    """Folder with one folder of images per class, or tars, instead of the generated ones."""
    images: int = 1000
    """Images to generate."""
    workers: int = 0
    """Worker processes of each loader; 0: one per core."""
    batch_size: int = 64
    """Images per batch."""
    rounds: int = 3
    """Passes of each loader; the median counts."""
    model: str = "vit_base_patch16_224"
    """The model whose speed tells where the bottleneck is; none if empty."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON."""


@dataclass
class Row:
    """One way to load images: ``run`` makes one pass and yields the number of images of each batch."""

    name: str
    files: str
    """What it reads: folder or tars."""
    run: Callable[[], Iterator[int]]
    seconds: list[float] = field(default_factory=list)


def run(argv: list[str]) -> int:
    """Run the command."""
    options = parse(BenchData, argv, "vision-accel bench data")
    if min(options.images, options.batch_size, options.rounds) < 1:
        raise ValueError("--images, --batch-size and --rounds must be positive")
    from vision_accel.data.preprocess import usable_cores  # noqa: PLC0415  (--help must not wait for it)

    cores = usable_cores()
    workers = options.workers or cores
    with tempfile.TemporaryDirectory(prefix="vision-accel-") as made:
        places = [options.data] if options.data else _generate(Path(made), options.images, workers)
        rows = [row for place in places for row in _rows(place, workers, options.batch_size)]
        counts: list[int] = []
        for _ in range(options.rounds):
            counts = []
            for row in rows:
                start = time.perf_counter()
                counts.append(sum(row.run()))
                row.seconds.append(time.perf_counter() - start)
    records = [_record(row, n, rows, min(workers, cores)) for row, n in zip(rows, counts, strict=True)]
    verdict = _bottleneck(options, max(r["images_per_s"] for r in records if r["loader"].startswith("ours")))
    if options.json:
        print(json.dumps({"workers": workers, "cores": cores, "rows": records} | verdict, indent=2))
        return 0
    print(f"{counts[0]} images, {workers} workers on {cores} cores, batches of {options.batch_size};")
    print(f"times as fast as {_PEER}: by the shortest pass of each / by the median")
    width = max(len(record["loader"]) for record in records)
    for record in records:
        print(
            f"{record['loader']:<{width}}  {record['images_per_s']:8.1f} images/s"
            f"  {record['images_per_s_per_core']:8.1f} per core"
            f"  {record['times_peer_min']:5.2f} / {record['times_peer_median']:.2f}"
        )
    if verdict:
        print(
            f"{options.model}: {verdict['model_images_per_s']:.1f} images/s;"
            f" the {verdict['bottleneck']} is the bottleneck"
        )
    return 0


def _record(row: Row, images: int, rows: list[Row], cores: int) -> dict[str, Any]:
    """What is reported of a loader, beside the peer on the same files."""
    median = statistics.median(row.seconds)
    peer = next(r.seconds for r in rows if (r.name, r.files) == (_PEER, row.files))
    return {
        "loader": f"{row.name}, {row.files}",
        "images_per_s": images / median,
        "images_per_s_per_core": images / median / cores,
        "times_peer_min": min(peer) / min(row.seconds),
        "times_peer_median": statistics.median(peer) / median,
    }


def photograph(rng: np.random.Generator, height: int = 375, width: int = 500) -> bytes:
    """A JPEG with a photograph's statistics: 1/f noise with correlated colours."""
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    f[0, 0] = 1
    spectrum = (rng.normal(size=(3, height, width)) + 1j * rng.normal(size=(3, height, width))) / f**1.2
    x = np.fft.ifft2(spectrum).real
    grey = x.mean(0)
    x = 0.75 * grey + 0.5 * (x - grey)
    pixels = np.clip((x - x.mean()) / x.std() * 55 + 120, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _generate(root: Path, count: int, shards: int) -> list[str]:
    """A folder and tars of the same images."""
    from vision_accel.data.folder import open_images  # noqa: PLC0415  (--help must not wait for it)
    from vision_accel.data.pack import pack  # noqa: PLC0415

    rng = np.random.default_rng(0)
    kinds = [photograph(rng) for _ in range(min(count, 64))]
    for i in range(count):
        file = root / f"folder/{i % 10}/{i:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(kinds[i % len(kinds)])
    folder = root / "folder"
    pack(open_images(folder), root / "tars", max_count=-(-count // (2 * shards)))
    return [str(folder), str(root / "tars")]


def _rows(place: str, workers: int, batch: int) -> Iterator[Row]:
    from vision_accel.data.folder import open_images  # noqa: PLC0415
    from vision_accel.data.loader import EvalImages, Loader, collate_eval  # noqa: PLC0415
    from vision_accel.data.preprocess import Preprocess  # noqa: PLC0415
    from vision_accel.data.source import Source  # noqa: PLC0415
    from vision_accel.data.tars import Tars  # noqa: PLC0415

    source: Source = open_images(place)
    form = "tars" if isinstance(source, Tars) else "folder"
    recipe = Preprocess(resize_to=(256, 256), mean=_MEAN, std=_STD)
    numbers = range(len(source))
    batches = [list(numbers[i : i + batch]) for i in range(0, len(source), batch)]

    samples = EvalImages(source, recipe)

    def ours() -> Iterator[int]:
        with Loader(samples, batches, collate_eval, batch_size=batch, workers=workers) as loader:
            for b in loader:
                yield len(b.indices)

    def threads() -> Iterator[int]:
        for b in batches:
            yield len(recipe.batch([source.read(i) for i in b], workers))

    def torch_pillow() -> Iterator[int]:
        from torch.utils.data import DataLoader  # noqa: PLC0415

        files = _PillowFiles(source)
        for images, _ in DataLoader(files, batch_size=batch, num_workers=workers):  # type: ignore[arg-type]
            yield len(images)

    def webdataset_pillow() -> Iterator[int]:
        import webdataset  # noqa: PLC0415

        paths = source.paths if isinstance(source, Tars) else []
        samples = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
        samples = samples.to_tuple("jpg", "cls").map_tuple(pillow_transform, int).batched(batch)
        for images, _ in webdataset.WebLoader(samples, batch_size=None, num_workers=workers):
            yield len(images)

    yield Row("ours", form, ours)
    yield Row("ours, Preprocess.batch in threads", form, threads)
    for name, passes in dali_rows(source, recipe, batches, workers):
        yield Row(name, form, passes)
    yield Row(_PEER, form, torch_pillow)
    if form == "tars" and find_spec("webdataset") is not None:
        yield Row("webdataset + Pillow", form, webdataset_pillow)


_PEER = "torch DataLoader + Pillow"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pillow_transform(data: bytes) -> Any:
    """The steps of timm's evaluation transform: resize to 256, crop to 224, to floats, normalise."""
    import torch  # noqa: PLC0415

    image = Image.open(io.BytesIO(data)).convert("RGB")
    w, h = image.size
    w, h = (256, int(256 * h / w)) if w <= h else (int(256 * w / h), 256)
    image = image.resize((w, h), Image.Resampling.BICUBIC)
    left, top = round((w - 224) / 2), round((h - 224) / 2)
    image = image.crop((left, top, left + 224, top + 224))
    x = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (_MEAN, _STD))
    return x.clone().sub_(mean).div_(std)


class _PillowFiles:
    """What timm's ImageDataset does with our source."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return pillow_transform(self.source.read(index)), int(self.source.labels[index])


def _bottleneck(options: BenchData, loaded: float) -> dict[str, Any]:
    """Images per second of the model here, and what is slower."""
    if not options.model:
        return {}
    import torch  # noqa: PLC0415

    from vision_accel.models.device import choose_device  # noqa: PLC0415

    device = choose_device("auto")
    model = va.create_model(options.model).eval().to(device)
    batch = options.batch_size if device.type == "cuda" else min(options.batch_size, 8)
    x = torch.randn(batch, 3, *model.config.img_size, device=device)
    times = []
    half = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    with torch.inference_mode(), half:
        for _ in range(4):
            start = time.perf_counter()
            model(x)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    speed = batch / min(times)
    return {"model_images_per_s": speed, "bottleneck": "loader" if loaded < speed else "model"}
