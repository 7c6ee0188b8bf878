# SPDX-License-Identifier: Apache-2.0
import errno
import json
import os
import resource
import shutil

import numpy as np
import pytest
from PIL import Image

from vision_accel.cli import main
from vision_accel.data.captions import open_captions
from vision_accel.data.check import check
from vision_accel.data.folder import open_images
from vision_accel.data.pack import pack
from vision_accel.data.source import DataError
from vision_accel.data.tars import has_end_mark, load_index, scan


@pytest.fixture
def folder(image_root):
    return image_root / "train"


def content(source):
    """Bytes of the image -> label and captions."""
    return {
        source.read(i): (source.classes[source.labels[i]], source.captions(i)) for i in range(len(source))
    }


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_what_is_packed_is_what_is_read(folder, tmp_path):
    source = open_images(folder)
    result = pack(source, tmp_path / "out", max_count=25)
    assert [p.name for p in result.shards] == ["000000.tar", "000001.tar", "000002.tar"]
    assert (result.samples, result.kept, result.bad) == (60, 0, [])
    tars = open_images(tmp_path / "out")
    assert tars.classes == source.classes == ("blue", "green", "red")
    assert content(tars) == content(source)
    assert [tars.tar(i) for i in (0, 24, 25, 59)] == [0, 0, 1, 2]
    assert len(set(tars.labels[:20].tolist())) == 3  # mixed
    assert all(load_index(p) is not None and has_end_mark(p) for p in result.shards)
    plain = pack(source, tmp_path / "plain", shuffle=False)
    assert list(content(open_images(tmp_path / "plain"))) == list(content(source))
    assert pack(open_images(tmp_path / "plain"), tmp_path / "again", shuffle=False).samples == 60
    assert content(open_images(tmp_path / "again")) == content(source)
    assert len(plain.shards) == 1


def test_bytes_of_a_tar_are_limited(folder, tmp_path):
    result = pack(open_images(folder), tmp_path, max_bytes=50_000)
    sizes = [p.stat().st_size for p in result.shards]
    assert result.samples == 60
    assert max(sizes) <= 50_000 + 10_240  # tar fills its last record
    assert min(sizes[:-1]) > 30_000
    assert len(pack(open_images(folder), tmp_path / "tiny", max_bytes=1).shards) == 60


# The library leaves its files open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_captions_and_labels_reach_the_webdataset_library(folder, tmp_path):
    import webdataset

    (tmp_path / "table.csv").write_text(
        "image,caption\n"
        + "".join(f"{folder}/red/{i}.{'png' if i % 2 else 'jpg'},the {i}.\n" for i in range(6))
    )
    captions = open_captions(str(tmp_path / "table.csv"))
    pack(captions, tmp_path / "c", max_count=4)
    pack(open_images(folder), tmp_path / "l", max_count=40)
    for name, source, size in (("c", captions, 2), ("l", open_images(folder), 2)):
        urls = [str(p) for p in sorted((tmp_path / name).glob("*.tar"))]
        assert len(urls) == size
        theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
        ours = (open_captions if name == "c" else open_images)(str(tmp_path / name))
        assert [s["__key__"] for s in theirs] == [ours.name(i)[-12:-4] for i in range(len(ours))]
        for i, sample in enumerate(theirs):
            assert sample.get("jpg", sample.get("png")) == ours.read(i)
            if name == "c":
                assert sample["txt"].decode() == ours.captions(i)[0]
            else:
                assert int(sample["cls"]) == ours.labels[i]
                assert json.loads(sample["json"])["class"] == ours.classes[ours.labels[i]]
        assert content(ours) == content(source)


# The library leaves its files open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_tars_of_the_webdataset_library(folder, tmp_path):
    import webdataset

    source = open_images(folder)
    with webdataset.ShardWriter(f"{tmp_path}/%04d.tar", maxcount=40, verbose=0) as sink:
        for i in range(len(source)):
            name = source.name(i)
            sample = {"__key__": name.rpartition(".")[0], "cls": int(source.labels[i])}
            sink.write(sample | {name.rpartition(".")[2]: source.read(i), "txt": f"the {name}"})
    tars = open_images(f"{tmp_path}/{{0000..0001}}.tar", source.classes)
    assert len(tars) == 60
    assert tars.labels.tolist() == source.labels.tolist()
    assert [tars.read(i) for i in range(60)] == [source.read(i) for i in range(60)]
    captioned = open_captions(str(tmp_path))
    assert [captioned.captions(i) for i in range(60)] == [(f"the {source.name(i)}",) for i in range(60)]


def test_goes_on_where_it_was_interrupted(folder, tmp_path):
    source = open_images(folder)
    whole = pack(source, tmp_path / "whole", max_count=7)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for name in ("000004.tar", "000007.tar.index.npz"):
        (tmp_path / "part" / name).unlink()
    (tmp_path / "part/000003.tar").write_bytes(b"another")
    result = pack(source, tmp_path / "part", max_count=7)
    assert (result.kept, result.samples) == (3, 60)
    assert names(tmp_path / "part") == names(tmp_path / "whole")
    for tar in whole.shards:
        assert (tmp_path / "part" / tar.name).read_bytes() == tar.read_bytes()
    for options in ({"max_count": 8}, {"max_count": 7, "seed": 1}):
        with pytest.raises(DataError, match="holds tars of another source or other options"):
            pack(source, tmp_path / "part", **options)


def test_a_disk_that_fills_up_loses_nothing(folder, tmp_path, monkeypatch):
    source, calls = open_images(folder), []

    def full(descriptor, fsync=os.fsync):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*000002\.tar"):
        pack(source, tmp_path, max_count=20)
    assert names(tmp_path) == sorted(
        [
            "000000.tar",
            "000000.tar.index.npz",
            "000001.tar",
            "000001.tar.index.npz",
            "classes.txt",
            "pack.json",
        ]
    )
    assert len(open_images(tmp_path)) == 40
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            pack(source, tmp_path, max_count=20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(open_images(tmp_path)) == 40
    assert pack(source, tmp_path, max_count=20).samples == 60
    assert content(open_images(tmp_path)) == content(source)


# The command line.


@pytest.fixture
def run(capsys):
    def call(*argv):
        code = main(["data", *map(str, argv)])
        return code, *capsys.readouterr()

    return call


def test_pack_check_and_index_commands(run, folder, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(folder, root)
    assert run("check", root)[:2] == (0, "60 samples, 0 problems\n")
    (root / "red/2.jpg").write_bytes((root / "red/2.jpg").read_bytes()[:-300])
    (root / "blue/5.png").write_bytes(b"GIF89a")
    Image.fromarray(np.zeros((300, 400), np.uint8)).save(root / "green/4.jpg")
    broken = {"blue/5.png", "green/4.jpg", "red/2.jpg"}
    code, out, _ = run("check", root, "--json", "--max-pixels", 100_000)
    assert code == 3
    assert {b["file"] for b in json.loads(out)["bad"]} == broken
    assert run("check", root, "--no-decode")[0] == 0

    (root / "red/2.jpg").chmod(0o000)
    (root / "red/2.jpg").unlink()
    (root / "red/2.jpg").symlink_to(tmp_path / "nowhere")
    code, out, err = run("pack", root, tmp_path / "out", "--max-count", 30)
    assert (code, out) == (3, f"59 samples in 2 tars: {tmp_path / 'out'}\n")
    assert "red/2.jpg: no such file or directory" in err
    code, out, _ = run("check", tmp_path / "out", "--max-pixels", 100_000)
    assert code == 3
    assert out.count(": ") == 2
    assert out.endswith("59 samples, 2 problems\n")
    assert run("pack", root, tmp_path / "out", "--max-count", 30)[1].startswith(
        "59 samples in 2 tars, 2 of them kept"
    )

    cut = tmp_path / "out/000001.tar"
    cut.write_bytes(cut.read_bytes()[:20_000])
    expected = len(open_images(tmp_path / "out"))
    code, out, err = run("index", tmp_path / "out")
    assert code == 3
    assert "the tar is cut off" in err
    assert "1 of the indices written anew" in out
    assert run("index", tmp_path / "out")[1].endswith("0 of the indices written anew\n")
    assert load_index(cut) is not None
    assert scan(cut).total == load_index(cut).total
    assert len(open_images(tmp_path / "out")) == expected
    assert "cut off" in run("check", f"{tmp_path}/out/000001.tar", "--no-decode")[1]


def test_check_of_captions(run, folder, tmp_path):
    (tmp_path / "x.csv").write_text(
        f"image,caption\n{folder}/red/0.jpg,red\n{folder}/red/1.png,\nnone.png,what\n"
    )
    code, out, _ = run("check", tmp_path / "x.csv")
    assert code == 3
    assert out.splitlines()[-1] == "2 samples, 2 problems"
    assert "none.png: no such file" in out
    assert "red/1.png: no caption" in out
    source = open_captions(str(tmp_path / "x.csv"))
    assert len(check(source, captions=True)) == 2


def test_mistakes(run, tmp_path):
    (tmp_path / "no").mkdir()
    for argv, message in (
        (["pak"], "did you mean 'pack'"),
        (["index", tmp_path / "no"], "no tars"),
        (["check", tmp_path / "none"], "no such file or folder"),
        (["pack", tmp_path / "no", tmp_path / "out"], "no class folders"),
        (["pack", tmp_path / "no", tmp_path / "out", "--max-count", "x"], "max-count"),
    ):
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert message in err
    assert run()[0] == 2
    assert "pack" in run("--help")[1]
