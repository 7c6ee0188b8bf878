# SPDX-License-Identifier: Apache-2.0
"""Find the samples of a data set that cannot be used."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vision_accel.data.images import ImageError, load_image
from vision_accel.data.loader import bad_sample
from vision_accel.data.preprocess import usable_cores
from vision_accel.data.source import MAX_PIXELS, BadSample, Joined, SampleError, Source
from vision_accel.data.tars import Tars, has_end_mark


def check(
    source: Source,
    *,
    captions: bool = False,
    decode: bool = True,
    max_pixels: int = MAX_PIXELS,
    threads: int = 0,
    progress: Callable[[int], object] = lambda samples: None,
) -> list[BadSample]:
    """Read every sample, and decode its image.

    Args:
        source: the samples.
        captions: whether each must have a caption.
        decode: False only looks at what opening the source tells: halves of samples and damaged tars.
        max_pixels: larger images count as broken.
        threads: that read and decode; 0: one per core.
        progress: called with the number of samples that a step has done.

    Returns:
        What is broken, in the order of the source: corrupt images, empty captions, half samples, second ones
        of a name, truncated tars, and tars without an end mark.
    """
    found = list(source.problems)
    for part in source.sources if isinstance(source, Joined) else [source]:
        damaged = {b.file.partition("/")[0] for b in part.problems if "the tar is" in b.error}
        for path in part.paths if isinstance(part, Tars) else ():
            if Path(path).name not in damaged and not has_end_mark(Path(path)):
                found.append(BadSample(path, "no end mark: the tar may be cut off after a whole file"))

    def problem(index: int) -> BadSample | None:
        try:
            load_image(source.read(index), max_pixels=max_pixels)
            if captions and not source.captions(index):
                raise SampleError("no caption")
        except (ImageError, SampleError, OSError) as e:
            return bad_sample(source, index, e)
        return None

    if decode:
        workers = threads or usable_cores()
        chunk = workers * 64
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(source), chunk):
                part_of = range(start, min(start + chunk, len(source)))
                found += [b for b in pool.map(problem, part_of) if b is not None]
                progress(len(part_of))
    return found
