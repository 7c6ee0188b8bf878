# SPDX-License-Identifier: Apache-2.0
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from vision_accel.data.images import ImageError
from vision_accel.infer._images import batches, expand

NAMES = ["0.jpg", "1.png", "3.png", "4.jpg", "6.jpg", "7.png", "more/2.jpg", "more/5.png"]


class MeanColor:
    """A preprocess that is easy to check: the mean colour, [3, 1, 1]."""

    alpha = "drop"

    def __call__(self, pixels, threads=0):
        return np.asarray(pixels, np.float32).mean((0, 1))[:, None, None]


mean_color = MeanColor()


def run(images, **options):
    options = {"batch_size": 3, "workers": 2, "ahead": 1} | options
    return [item for batch in batches(images, mean_color, **options) for item in batch]


def relative(items, folder):
    return [item.source.removeprefix(f"{folder}/") for item in items]


def test_folder_in_sorted_order(folder):
    assert relative(run(folder), folder) == NAMES
    assert relative(run(str(folder)), folder) == NAMES


def test_pattern(folder):
    assert relative(run(f"{folder}/*.png"), folder) == ["1.png", "3.png", "7.png"]
    assert relative(run(f"{folder}/**/*.png"), folder) == ["1.png", "3.png", "7.png", "more/5.png"]


def test_file_whose_name_looks_like_a_pattern(folder):
    (folder / "a[1].png").write_bytes((folder / "1.png").read_bytes())
    assert len(run(folder / "a[1].png")) == 1


def test_every_kind_of_picture_is_the_same_picture(folder):
    path = folder / "1.png"
    array = np.asarray(Image.open(path).convert("RGB"))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    data = path.read_bytes()
    kinds = [
        path,
        str(path),
        data,
        bytearray(data),
        Image.open(path),
        array,
        array[None],
        tensor,
        tensor[None],
    ]
    for kind in [*kinds, io.BytesIO(data)]:
        (item,) = run(kind)
        assert torch.equal(item.pixels, torch.from_numpy(mean_color(array)))
    assert [i.source for i in run([array, path, tensor])] == ["image 0", str(path), "image 2"]


def test_modes_become_rgb(folder):
    for mode in ("L", "RGBA", "P", "CMYK", "1", "LA"):
        (item,) = run(Image.open(folder / "0.jpg").convert("RGB").convert(mode))
        assert item.pixels.shape == (3, 1, 1)


def test_float_tensor_passes_unchanged():
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(torch.stack([i.pixels for i in run(x)]), x)


def test_generator_is_read_lazily(folder):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield folder / "0.jpg"

    stream = batches(endless(), mean_color, batch_size=2, ahead=2, workers=2)
    for _ in range(3):
        next(stream)
    stream.close()
    assert len(taken) == (3 + 2) * 2


def test_order_is_kept_whatever_thread_is_first(folder):
    gate = threading.Barrier(2)

    class Gated(MeanColor):
        def __call__(self, pixels, threads=0):
            gate.wait(timeout=20)  # pictures wait for each other in pairs: two threads run at once
            return super().__call__(pixels)

    got = [i for b in batches(folder, Gated(), batch_size=2, ahead=0, workers=2) for i in b]
    assert relative(got, folder) == NAMES


def test_threads_end_with_the_stream(folder):
    before = threading.active_count()
    stream = batches(folder, mean_color, batch_size=2, ahead=1, workers=3)
    next(stream)
    stream.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (2, 0), (2, 3)])
def test_bad_pictures_stay_in_place(folder, workers, ahead):
    (folder / "1.png").write_bytes(b"no picture")
    data = (folder / "4.jpg").read_bytes()
    (folder / "4.jpg").write_bytes(data[: len(data) // 2])
    (folder / "7.png").write_bytes(b"")
    items = run(folder, on_error="skip", workers=workers, ahead=ahead)
    assert relative(items, folder) == NAMES
    bad = [item for item in items if item.error is not None]
    assert relative(bad, folder) == ["1.png", "4.jpg", "7.png"]
    for item in bad:
        assert item.source in str(item.error)
        assert item.pixels is None
    with pytest.raises(ImageError, match=r"1\.png"):
        run(folder, workers=workers, ahead=ahead)


def test_missing_file_is_a_bad_picture(folder):
    items = run([folder / "0.jpg", folder / "none.jpg"], on_error="skip")
    assert [item.error is None for item in items] == [True, False]
    with pytest.raises(ImageError, match=r"none\.jpg"):
        run(folder / "none.jpg")


def test_bytes_that_are_no_picture():
    (item,) = run(b"abc", on_error="skip")
    assert item.source == "image 0"
    assert item.error is not None


def test_nothing_found(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in folder '.*empty'"):
        run(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"no images match '.*\*\.bmp'"):
        run(f"{folder}/*.bmp")
    assert run([]) == []


@pytest.mark.parametrize("what", [3, None, {"a": 1}, [3.5], [None]])
def test_no_picture_at_all(what):
    with pytest.raises(TypeError, match="images: expected a path, bytes, PIL, numpy or torch image"):
        run(what)


@pytest.mark.parametrize("shape", [(8, 8), (1, 1, 3, 8, 8)])
def test_tensor_of_wrong_rank(shape):
    with pytest.raises(TypeError, match=r"a preprocessed tensor must be \[3, h, w\]"):
        run([torch.zeros(shape)])


def test_options_are_checked(folder):
    for options, message in [
        ({"batch_size": 0}, "batch_size: must be at least 1, got 0"),
        ({"workers": -1}, "workers: must not be negative"),
        ({"on_error": "ignore"}, "on_error: must be 'raise' or 'skip', got 'ignore'"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(folder, **options)


def test_thumbnail(folder):
    for item in run(folder, thumbnail=16):
        assert max(item.thumbnail.size) == 16
    assert run(folder)[0].thumbnail is None


def test_expand_names_bytes_by_place():
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")
    assert [name for name, _ in expand([data.getvalue()] * 2)] == ["image 0", "image 1"]
