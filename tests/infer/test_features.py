# SPDX-License-Identifier: Apache-2.0
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vision_accel.infer import Index, writing_features

ENDINGS = pytest.mark.parametrize("ending", ["npz", "npy", "safetensors"])


@ENDINGS
def test_other_libraries_read_them(tmp_path, ending):
    path, rows = tmp_path / f"f.{ending}", np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    sources = ["a.png", "ordner/ö.png", "c d", '"quoted"', "e"]
    with writing_features(path) as file:
        for source, row in zip(sources, rows, strict=True):
            file.add(source, row.astype(np.float64))
        assert not path.exists()
    if ending == "npy":
        found, names = np.load(path), path.with_suffix(".txt").read_text("utf-8").splitlines()
    elif ending == "npz":
        with np.load(path) as archive:
            found, names = archive["features"], archive["sources"].tolist()
    else:
        with safe_open(path, "numpy") as archive:
            found, names = archive.get_tensor("features"), None
    np.testing.assert_array_equal(found, rows)
    assert names in (sources, None)
    index = Index.load(path)
    assert index.sources == sources
    hits = index.nearest(torch.from_numpy(rows[1:2]), 1)[0]
    assert hits[0].source == sources[1]
    index.save(path)
    torch.testing.assert_close(Index.load(path).features, index.features)


@ENDINGS
def test_rows_are_not_kept_in_memory(tmp_path, ending):
    row = np.ones(4096, np.float32)
    tracemalloc.start()
    with writing_features(tmp_path / f"f.{ending}") as file:
        for i in range(2000):  # 32 MB
            file.add(str(i), row)
        assert file.shape == (2000, 4096)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_nothing_is_left_of_what_failed(tmp_path):
    def write(path):
        with writing_features(path) as file:
            file.add("a", np.ones(2))
            file.add("b", np.ones(3))

    for ending in ("npz", "npy", "safetensors"):
        with pytest.raises(ValueError, match=r"every row must be \[2\], got \[3\] for b"):
            write(tmp_path / f"f.{ending}")
    with pytest.raises(ValueError, match="must end in"), writing_features(tmp_path / "f.bin"):
        pass
    with pytest.raises(OSError, match="cannot write"), writing_features(tmp_path / "none/f.npy"):
        pass
    assert not list(tmp_path.iterdir())
