# SPDX-License-Identifier: Apache-2.0
import pytest

from vision_accel.cli._options import parse
from vision_accel.cli.classify import Classify
from vision_accel.train import Config


def test_flags_over_file_over_defaults(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {overrides: {depth: 2}}\noptim: {weight-decay: 0.5, lr: 1e-3}\n")
    defaults = {"optim": {"weight_decay": 0.2, "lr": 5e-4, "eps": 1e-6}, "model": {"name": "ViT-B-32"}}
    flags = ("--config", str(file), "--optim.lr", "2")
    config = parse(Config, flags, "test", defaults=defaults)
    assert (config.optim.lr, config.optim.weight_decay, config.optim.eps) == (2.0, 0.5, 1e-6)
    assert (config.model.name, config.model.overrides) == ("ViT-B-32", {"depth": 2})
    flags = (*flags, "--model.overrides", "embed_dim", "24")
    assert parse(Config, flags, "test").model.overrides == {"embed_dim": 24}
    file.write_text("model: somewhere\n")
    with pytest.raises(ValueError, match="model is an argument, not an option"):
        parse(Classify, flags[:2], "test")
