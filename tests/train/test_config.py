# SPDX-License-Identifier: Apache-2.0
import ast
import dataclasses
import inspect

import pytest
import tyro
import yaml

from vision_accel.train import Config, ConfigError, from_dict, load_config, save_config
from vision_accel.train import config as config_module


def test_yaml_round_trip(tmp_path):
    config = Config()
    config.model.img_size = (160, 224)
    config.model.overrides = {
        "embed_dim": 48,
        "qkv_bias": False,
        "init_values": 1e-5,
        "act_layer": "gelu_tanh",
    }
    config.optim.betas = (0.8, 0.95)
    config.train.report_to = ("tensorboard",)
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["optim"]["betas"] == [0.8, 0.95]


def test_file_sets_some_options(tmp_path):
    (tmp_path / "c.yaml").write_text("optim: {lr: 3e-4, clip_norm: 2}\ntrain:\n  precision: bf16\n")
    config = load_config(tmp_path / "c.yaml")
    assert (config.optim.lr, config.optim.clip_norm, config.train.precision) == (3e-4, 2.0, "bf16")
    assert config.data == Config().data
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"optim": {"weight_decai": 0.1}},
            "optim.weight_decai: unknown option; did you mean 'optim.weight_decay'?",
        ),
        ({"optin": {"lr": 0.1}}, "optin: unknown option; did you mean 'optim'?"),
        ({"lr": 0.1}, "lr: unknown option; did you mean 'optim.lr'?"),
        ({"data": {"epochs": 3}}, "data.epochs: unknown option; did you mean 'train.epochs'?"),
        ({"train": {"zzz": 3}}, "train.zzz: unknown option; known here: out, resume, epochs"),
        ({"optim": {"lr": "fast"}}, "optim.lr: must be a number, got 'fast'"),
        ({"optim": {"lr": True}}, "optim.lr: must be a number, got True"),
        ({"optim": {"betas": [0.9]}}, "optim.betas: must be [a number, a number], got [0.9]"),
        ({"optim": 3}, "optim: must be a group of options, got 3"),
        ([1], "configuration: must be a group of options, got [1]"),
        ({"data": {"batch_size": 2.5}}, "data.batch_size: must be a whole number, got 2.5"),
        ({"data": {"train": 5}}, "data.train: must be text, got 5"),
        ({"train": {"resume": "yes"}}, "train.resume: must be true or false, got 'yes'"),
        ({"train": {"precision": "int8"}}, "train.precision: must be 'fp32' or 'bf16' or 'fp16', got 'int8'"),
        ({"train": {"report_to": ["csv"]}}, "train.report_to: must be a list of 'tensorboard' or 'wandb'"),
        (
            {"model": {"img_size": "big"}},
            "model.img_size: must be a whole number or [a whole number, a whole number]",
        ),
        ({"model": {"overrides": {"depth": [1]}}}, "model.overrides: must be names with true or false or"),
        ({"data": {"batch_size": 0}}, "data.batch_size: must be at least 1, got 0"),
        ({"model": {"drop_path": 1.5}}, "model.drop_path: must be at most 0.999, got 1.5"),
        ({"optim": {"lr": float("nan")}}, "optim.lr: must be at least 0, got nan"),
        ({"optim": {"betas": [0.9, 1]}}, "optim.betas: must be at least 0 and below 1, got [0.9, 1.0]"),
        ({"contrastive": {"vocab_size": 600}}, "contrastive.vocab_size: is for the task contrastive, not cl"),
        ({"task": "autoencode", "model": {"drop_path": 0.1}}, "model.drop_path: is for the task classify or"),
        ({"task": "contrastive", "augment": {"mixup": 0.1}}, "augment.mixup: is for the task classify, not"),
        ({"task": "contrastive", "autoencode": {"rec_loss": "l2"}}, "autoencode.rec_loss: is for the task"),
    ],
)
def test_mistakes_name_the_option(values, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    assert str(caught.value).startswith(message)


def test_options_set_in_python_are_checked_too():
    config = Config()
    config.train.accumulate = "two"
    with pytest.raises(ConfigError, match=r"train.accumulate: must be a whole number, got 'two'"):
        config.check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: [", "not a YAML file"),
        ("a: !!python/object/apply:os.system ['touch canary']", "not a YAML file"),
        ("optim: {_target_: os.system}", "optim._target_: unknown option"),
    ],
)
def test_files_that_are_not_options(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / "c.yaml")
    assert str(caught.value).startswith(str(tmp_path / "c.yaml"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"c.yaml: cannot read the configuration: No such file"):
        load_config(tmp_path / "c.yaml")


def test_command_line_has_every_option(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Config, args=["--help"])
    text = capsys.readouterr().out
    for group in dataclasses.fields(Config):
        if dataclasses.is_dataclass(group.default_factory):
            for option in dataclasses.fields(group.default_factory):
                assert f"--{group.name}.{option.name.replace('_', '-')}" in text
    config = tyro.cli(
        Config,
        args=[
            "--optim.lr",
            "0.1",
            "--model.img-size",
            "32",
            "64",
            "--model.overrides",
            "depth",
            "2",
            "act",
            "x",
        ],
    )
    assert (config.optim.lr, config.model.img_size) == (0.1, (32, 64))
    assert config.model.overrides == {"depth": 2, "act": "x"}


def test_every_option_is_documented():
    missing = []
    for node in ast.parse(inspect.getsource(config_module)).body:
        if isinstance(node, ast.ClassDef):
            pairs = zip(node.body, [*node.body[1:], None], strict=True)
            for field, text in pairs:
                documented = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and node.name != "Config" and not documented:
                    missing.append(f"{node.name}.{ast.unparse(field.target)}")
    assert not missing
