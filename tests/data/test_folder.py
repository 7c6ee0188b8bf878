# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import pytest

from vision_accel.data import folder as module
from vision_accel.data.folder import ImageFolder
from vision_accel.data.source import DataError, SampleError


def fill(root, *files):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def test_classes_labels_and_order(tmp_path):
    fill(tmp_path, "cat/2.png", "cat/10.JPG", "ant/x.jpeg", "bee/deep/er/1.webp", "bee/0.png")
    found = ImageFolder(tmp_path)
    assert found.classes == ("ant", "bee", "cat")
    assert [found.name(i) for i in range(len(found))] == [
        "ant/x.jpeg",
        "bee/0.png",
        "bee/deep/er/1.webp",
        "cat/10.JPG",
        "cat/2.png",
    ]
    assert found.labels.tolist() == [0, 1, 1, 2, 2]
    assert found.path(4) == tmp_path / "cat/2.png"


def test_other_files_and_hidden_ones_are_left_out(tmp_path):
    fill(tmp_path, "a/1.png", "a/notes.txt", "a/.hidden.png", ".git/1.png", "a/.thumbs/1.png", "readme.png")
    assert [ImageFolder(tmp_path).name(i) for i in range(len(ImageFolder(tmp_path)))] == ["a/1.png"]


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    fill(tmp_path, *(f"{c}/{i}.png" for c in "dbca" for i in range(7)))
    expected = ImageFolder(tmp_path)
    scandir = os.scandir
    monkeypatch.setattr(module.os, "scandir", lambda p: reversed(list(scandir(p))))
    reversed_ = ImageFolder(tmp_path)
    assert [reversed_.name(i) for i in range(28)] == [expected.name(i) for i in range(28)]
    assert reversed_.classes == expected.classes


def test_names_that_are_not_unicode(tmp_path):
    fill(tmp_path, "a/ü.png", os.fsdecode(b"a/\xff.png"))
    found = ImageFolder(tmp_path)
    assert all(found.path(i).exists() for i in range(2))


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / "real", "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a").symlink_to(tmp_path / "real")
    (tmp_path / "real/loop").symlink_to(tmp_path / "real")
    assert len(ImageFolder(tmp_path / "root")) == 1


def test_what_is_no_file_is_not_read(tmp_path):
    fill(tmp_path, "a/1.png")
    (tmp_path / "a/2.png").mkdir()
    os.mkfifo(tmp_path / "a/3.png")  # opening it would wait for a writer
    folder = ImageFolder(tmp_path)
    for index in (1, 2):
        with pytest.raises(SampleError, match="not a regular file"):
            folder.read(index)


def test_given_classes_decide_the_labels(tmp_path):
    fill(tmp_path, "b/1.png", "c/1.png")
    assert ImageFolder(tmp_path, ["c", "a", "b"]).labels.tolist() == [2, 0]
    with pytest.raises(DataError, match="class folder 'c' is not one of the 2 classes"):
        ImageFolder(tmp_path, ["a", "b"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["1.png"], "no class folders; images are expected at .*/<class>/<image>"),
        (["a/1.png", "b/notes.txt"], "class folder 'b' has no images"),
    ],
)
def test_folder_of_another_form(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        ImageFolder(fill(tmp_path, *files))


def test_missing_empty_and_unreadable_folders(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"nowhere: cannot read the image folder: No such file"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no class folders"):
        ImageFolder(tmp_path)
    fill(tmp_path, "a/1.png", "b/1.png")
    with pytest.raises(DataError, match="Not a directory"):
        ImageFolder(tmp_path / "a/1.png")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(module.os, "scandir", denied)
    with pytest.raises(DataError, match=r"/b: cannot read the folder: Permission denied"):
        ImageFolder(tmp_path)


def test_many_images_take_little_memory(tmp_path):
    fill(tmp_path, *(f"class/{i:08d}.png" for i in range(2000)))
    found = ImageFolder(tmp_path)
    held = found.labels.nbytes + sum(v.nbytes for v in vars(found).values() if isinstance(v, np.ndarray))
    held += sum(len(v) for v in vars(found).values() if isinstance(v, bytes))
    assert held < 60 * len(found)  # a list of paths takes several times as much
