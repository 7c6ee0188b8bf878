# SPDX-License-Identifier: Apache-2.0
"""The rows of ``vision-accel bench data`` that need DALI."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_accel.data.preprocess import Preprocess
    from vision_accel.data.source import Source


def dali_rows(
    source: "Source", recipe: "Preprocess", batches: list[list[int]], threads: int
) -> Iterator[tuple[str, Callable[[], Iterator[int]]]]:
    """Names and passes, each of which yields the number of images of its batches; none without DALI.

    Args:
        source: the images, of one kind of JPEG.
        recipe: how they are prepared, with resize "shortest".
        batches: their numbers.
        threads: of DALI, which decode; all other work is done in this process.
    """
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        return
    import torch  # noqa: PLC0415
    from nvidia.dali import fn, pipeline_def, types  # noqa: PLC0415

    from vision_accel.data.dali import DaliOptions, create_loader  # noqa: PLC0415
    from vision_accel.data.loader import EvalImages, collate_eval  # noqa: PLC0415
    from vision_accel.data.tars import Tars  # noqa: PLC0415

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"

    def ours(options: DaliOptions) -> Callable[[], Iterator[int]]:
        def run() -> Iterator[int]:
            with create_loader(
                EvalImages(source, recipe),
                batches,
                collate_eval,
                dali=options,
                batch_size=len(batches[0]),
                device=device,
            ) as loader:
                for batch in loader:
                    yield len(batch.indices)

        return run

    def plain() -> Iterator[int]:
        from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy  # noqa: PLC0415

        def graph() -> Any:
            data, _ = fn.readers.file(
                files=[str(source.root / source.name(i)) for i in range(len(source))], name="files"
            )
            image = fn.decoders.image(data, device="mixed" if gpu else "cpu", output_type=types.RGB)
            image = fn.resize(
                image,
                resize_shorter=(recipe.resize_to or recipe.size)[0],
                interp_type=types.INTERP_CUBIC,
                antialias=True,
            )
            return fn.crop_mirror_normalize(
                image,
                crop=recipe.size,
                mean=[m * 255 for m in recipe.mean],
                std=[s * 255 for s in recipe.std],
                dtype=types.FLOAT,
                output_layout="CHW",
            )

        make = pipeline_def(batch_size=len(batches[0]), num_threads=threads, device_id=0 if gpu else None)
        images = DALIGenericIterator(
            make(graph)(), ["image"], reader_name="files", last_batch_policy=LastBatchPolicy.PARTIAL
        )
        for (batch,) in images:
            yield len(batch["image"])

    yield "ours with DALI, exact pixels", ours(DaliOptions("exact", threads))
    yield "ours with DALI, its resizing", ours(DaliOptions("dali", threads))
    if not isinstance(source, Tars):
        yield "plain DALI", plain
