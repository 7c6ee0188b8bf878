# SPDX-License-Identifier: Apache-2.0
import io
import os
import pickle
import resource
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from vision_accel.data.captions import open_captions
from vision_accel.data.folder import open_images
from vision_accel.data.source import DataError, SampleError, expand
from vision_accel.data.tars import TarIndex, Tars, has_end_mark, index_path, load_index, save_index, scan


def png(value=0):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, files, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def labelled(count, start=0):
    for i in range(start, start + count):
        yield f"{i:04}.png", png(i)
        yield f"{i:04}.cls", str(i % 3).encode()


def names(source):
    return [source.name(i) for i in range(len(source))]


def test_samples_by_number(tmp_path):
    write(tmp_path / "0.tar", labelled(4))
    write(tmp_path / "1.tar", labelled(3, start=4))
    source = open_images(tmp_path)
    assert names(source) == [f"{i // 4}.tar/{i:04}.png" for i in range(7)]
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert source.classes == ("0", "1", "2")
    assert [source.read(i) for i in range(7)] == [png(i) for i in range(7)]
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(i) for i in (6, 0)] == [png(6), png(0)]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_rules_of_names(tmp_path, form):
    files = [
        ("dir.with.dots/a.png", png(1)),
        ("dir.with.dots/a.TXT", b"one\n\n two "),
        ("dir.with.dots/a.seg.png", png(9)),  # another ending: not the image
        ("b.JPEG", png(2)),
        ("b.json", b'{"caption": "three"}'),
        ("c.txt", b"four"),
        (".hidden", b"?"),
        ("noending", b"?"),
        ("e/" + "x" * 60 + ".webp", png(3)),
        ("e/" + "x" * 60 + ".caption", "fünf".encode()),
    ]
    source = open_captions(str(write(tmp_path / "x.tar", files, format=form)))
    assert [source.captions(i) for i in range(3)] == [("one", "two"), ("three",), ("fünf",)]
    assert [source.read(i) for i in range(3)] == [png(1), png(2), png(3)]
    assert source.problems == [("x.tar/c", "no image")]
    if form != tarfile.USTAR_FORMAT:
        long = "n" * 150
        write(tmp_path / "long.tar", [(f"{long}.png", png()), (f"{long}.txt", b"long")], format=form)
        assert names(open_captions(str(tmp_path / "long.tar"))) == [f"long.tar/{long}.png"]


def test_half_and_damaged_samples_are_named(tmp_path):
    files = [("a.png", png()), ("a.cls", b"x"), ("b.cls", b"1"), *labelled(2), ("c.png", png())]
    files += [("0000.png", png(7)), ("0000.cls", b"1"), ("d.cls", b"0"), ("d.png", png()), ("d.png", png())]
    source = open_images(write(tmp_path / "x.tar", files))
    assert names(source) == ["x.tar/0000.png", "x.tar/0001.png", "x.tar/d.png"]
    assert dict(source.problems) == {
        "x.tar/a.cls": "a label is a whole number, got b'x'",
        "x.tar/0000": "a second sample with this key",
        "x.tar/d.png": "a second file of this name in one sample",
        "x.tar/a.png": "no label",
        "x.tar/b": "no image",
        "x.tar/c.png": "no label",
    }


def test_every_truncation_keeps_the_samples_before_it(tmp_path):
    whole = write(tmp_path / "whole.tar", labelled(4)).read_bytes()
    index = scan(tmp_path / "whole.tar")
    assert has_end_mark(tmp_path / "whole.tar")
    label_ends = (index.image + index.image_size + 511) // 512 * 512 + 512 + 1
    cut = tmp_path / "cut.tar"
    for size in range(0, int(label_ends[-1]) + 600, 97):
        cut.write_bytes(whole[:size])
        expected = int((label_ends <= size).sum())
        assert not has_end_mark(cut)
        if expected:
            source = open_images(cut)
            assert len(source) == expected
            assert [source.read(i) for i in range(expected)] == [png(i) for i in range(expected)]
            assert source.problems or size % 512 == 0 or size > label_ends[-1] + 510
        else:
            with pytest.raises(DataError, match=r"not a tar|no whole samples"):
                open_images(cut)


def test_a_tar_that_shrinks_while_it_is_read(tmp_path):
    path = write(tmp_path / "x.tar", labelled(4))
    source = open_images(path)
    os.truncate(path, 3000)
    assert source.read(0) == png(0)
    with pytest.raises(SampleError, match="the tar ends inside this file"):
        source.read(3)


def test_not_tars(tmp_path):
    write(tmp_path / "packed.tar", []).write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(DataError, match="must not be compressed"):
        open_images(tmp_path / "packed.tar")
    write(tmp_path / "empty.tar", [])
    with pytest.raises(DataError, match="no whole samples"):
        open_images(tmp_path / "empty.tar")
    with pytest.raises(DataError, match="only files of this machine"):
        open_images("https://example.com/{0..3}.tar")
    with pytest.raises(DataError, match=r"2\.tar: no such file"):
        open_images(f"{tmp_path}/{{2..3}}.tar")
    with pytest.raises(DataError, match="names no file or folder"):
        open_images(f"::{tmp_path / 'empty.tar'}")
    (tmp_path / "file").mkdir()
    with pytest.raises(DataError, match="put :: between them"):
        open_images(f"{tmp_path}/{{packed.tar,file}}")


def test_patterns(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b.tar"):
        (tmp_path / name).touch()

    def found(text):
        return [[p.name for p in part] for part in expand(str(tmp_path / text))]

    assert found("a-{08..10}.tar") == [["a-08.tar", "a-09.tar", "a-10.tar"]]
    assert found("a-{10..09}.tar") == [["a-10.tar", "a-09.tar"]]
    assert found("{b,a-08}{.tar,.t?r}") == [["b.tar", "b.tar", "a-08.tar", "a-08.tar"]]
    with pytest.raises(DataError, match="braces inside braces"):
        found("{b,a-{08..09}}.tar")
    assert found("a-*.tar") == [["a-08.tar", "a-09.tar", "a-10.tar"]]
    assert found(f"b.tar::{tmp_path}/a-0?.tar") == [["b.tar"], ["a-08.tar", "a-09.tar"]]


def test_class_names(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "0.tar", labelled(3))
    (tmp_path / "x/classes.txt").write_text("cat\ndog\nemu\n")
    (tmp_path / "y/classes.txt").write_text("emu\nant\ncat\n")
    source = open_images(f"{tmp_path}/x::{tmp_path}/y")
    assert source.classes == ("ant", "cat", "dog", "emu")
    assert source.labels.tolist() == [1, 2, 3, 3, 0, 1]
    assert names(source)[4] == f"{tmp_path}/y/0.tar/0001.png"
    assert source.read(4) == png(1)
    assert open_images(tmp_path / "y", ["cat", "ant", "emu"]).labels.tolist() == [2, 1, 0]
    with pytest.raises(DataError, match="class 'dog' is not one of the 2"):
        open_images(tmp_path / "x", ["cat", "emu"])
    with pytest.raises(DataError, match="other classes than in"):
        open_images(f"{tmp_path}/?/0.tar")
    (tmp_path / "x/classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match="1 names, but there is a label 2"):
        open_images(tmp_path / "x")


def test_a_kept_index_is_used_until_the_tar_changes(tmp_path):
    path = write(tmp_path / "x.tar", [*labelled(3), ("z.cls", b"1"), ("z.cls", b"2")])
    kept = index_path(path)
    assert load_index(path) is None
    save_index(path, scan(path))
    assert [p.name for p in tmp_path.iterdir() if p.name != "x.tar"] == [kept.name]
    loaded, fresh = load_index(path), scan(path)
    assert all(np.array_equal(a, b) for a, b in zip(loaded, fresh, strict=True))
    content = kept.read_bytes()
    for damaged in (content[:200], content[:-300], b"", b"PK" + content[2:90]):
        kept.write_bytes(damaged)
        assert load_index(path) is None
        assert len(Tars([path])) == 3
    kept.write_bytes(content)
    os.utime(path, (time.time() + 5,) * 2)
    assert load_index(path) is None
    write(path, labelled(5))
    os.utime(path, (0, 0))
    assert load_index(path) is None  # another size
    assert len(Tars([path], "label")) == 5


def test_a_million_samples_open_quickly_and_small(tmp_path):
    """A process of its own measures how its memory grows; the tars are holes without bytes."""
    each, tars = 10_000, 100
    size = each * 102_400 + 1024
    image = np.arange(each) * 102_400 + 512
    one = np.ones(each, np.int64)
    keys = np.char.mod("%08d.jpg", np.arange(each)).astype("S12").view(np.uint8)
    index = TarIndex(
        image, one * 100_000, image + 101_000, one * 60, one * 0, one * 7, np.cumsum(one * 12), keys, ()
    )
    for i in range(tars):
        tar = tmp_path / f"{i:04}.tar"
        with tar.open("wb") as f:
            f.truncate(size)
        save_index(tar, index)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.process_time()
            source = open_images(tmp_path)
            seconds = time.process_time() - start
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            os.write(writer, f"{len(source)} {seconds} {grown} {source.name(999_999)}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    count, seconds, grown, name = os.read(reader, 1000).decode().split()
    os.close(reader)
    os.close(writer)
    assert int(count) == 1_000_000
    assert name == "0099.tar/00009999.jpg"
    assert float(grown) <= 200  # MiB
    assert float(seconds) <= 5  # of computing, whatever else the machine does
