# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import vision_accel as va
from vision_accel.train import CheckpointError, ConfigError, DataError, TrainingError, checkpoint, fit
from vision_accel.train.distributed import World
from vision_accel.train.tasks.classify import Classify


def final_weights(config, step=None):
    step = step or config.train.steps
    return checkpoint.load(Path(config.train.out) / f"checkpoints/step_{step:06d}").tensors


def metrics(config):
    return [json.loads(line) for line in (Path(config.train.out) / "metrics.jsonl").read_text().splitlines()]


def another(config, name):
    """The same options for a run beside it."""
    copy = type(config)(**{k: type(v)(**vars(v)) if k != "task" else v for k, v in vars(config).items()})
    copy.train.out = str(Path(config.train.out).with_name(name))
    return copy


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for stem in a:
        assert a[stem].keys() == b[stem].keys()
        different = [n for n, t in a[stem].items() if not torch.equal(t, b[stem][n])]
        assert not different, f"{stem}: {different}"


class Sabotaged(Classify):
    """Something happens in the loss of given steps (counted in micro-batches from 0)."""

    def __init__(self, config, at, act):
        super().__init__(config, World(torch.device("cpu")))
        self.calls, self.at, self.act = 0, set(at), act

    def loss(self, model, batch, rng):
        loss = super().loss(model, batch, rng)
        self.calls += 1
        return self.act(loss) if self.calls - 1 in self.at else loss


def crash(_loss):
    raise OSError("power cut")


def test_overfits_one_batch(small_run):
    small_run.data.val = ""
    small_run.data.train = str(Path(small_run.train.out).with_name("few"))
    for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        for i in range(2):
            folder = Path(small_run.data.train) / str(color)
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), tuple(c // (i + 1) for c in color)).save(folder / f"{i}.png")
    small_run.data.batch_size, small_run.train.steps = 6, 50
    small_run.optim.lr, small_run.augment.label_smoothing = 3e-3, 0.0
    fit(small_run)
    losses = [m["loss"] for m in metrics(small_run)]
    assert losses[0] > 0.9
    assert losses[-1] < 0.02


def test_run_directory(small_run):
    small_run.train.ema_decay = 0.9
    small_run.train.eval_every = 4
    result = fit(small_run)
    run = Path(small_run.train.out)
    names = {p.name for p in run.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "curves.png", "checkpoints", "LATEST", "model"}
    assert (run / "LATEST").read_text() == "step_000008\n"
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_000005", "step_000008"]
    steps = [m for m in metrics(small_run) if "loss" in m]
    assert [m["step"] for m in steps] == list(range(1, 9))
    assert [m["epoch"] for m in steps] == pytest.approx([12 * s / 60 for s in range(1, 9)])
    assert all(m["grad_norm"] > 0 and m["images_per_s"] > 0 and m["lr"] >= 0 for m in steps)
    evals = [m for m in metrics(small_run) if "eval_top1" in m]
    assert [m["step"] for m in evals] == [4, 8]
    assert {k: v for k, v in evals[-1].items() if k.startswith("eval")} == result.metrics
    assert result.best == max(m["eval_top1"] for m in evals)
    assert (result.step, result.epoch, result.stopped_by, result.bad_samples) == (8, 1.6, "", 0)
    with Image.open(run / "curves.png") as curves:
        assert curves.width > 1000
        assert len(curves.convert("RGB").getcolors(1 << 20)) > 50


def test_exported_model_is_ready(small_run, image_root):
    small_run.train.ema_decay = 0.5
    result = fit(small_run)
    model = va.load(result.run_dir / "model")
    assert model.labels == {0: "blue", 1: "green", 2: "red"}
    again = va.train.evaluate(model, image_root / "val")
    assert again.top1 == result.metrics["eval_top1"]
    assert again.loss == pytest.approx(result.metrics["eval_loss"], rel=1e-5)
    averaged = final_weights(small_run)["ema"]
    assert all(torch.equal(t, averaged[n]) for n, t in model.state_dict().items())


def test_best_or_last_model(small_run):
    small_run.train.eval_every = 1
    small_run.train.steps = 3
    scores = {1: 0.2, 2: 0.9, 3: 0.4}
    exported = {}
    for export in ("best", "last"):
        config = another(small_run, export)
        config.train.export, config.train.save_every, config.train.keep = export, 1, 10
        task = Classify(config, World(torch.device("cpu")))
        evals = iter(scores.values())
        task.evaluate = lambda *_, evals=evals: {"eval_top1": next(evals)}
        task.export = lambda model, folder: (
            folder.mkdir(),
            torch.save(model.state_dict(), folder / "weights.pt"),
        )
        result = fit(config, task)
        assert result.best == 0.9
        exported[export] = torch.load(result.run_dir / "model/weights.pt", weights_only=True)
        step = {"best": 2, "last": 3}[export]
        weights = final_weights(config, step)["model"]
        assert all(torch.equal(t, weights[n]) for n, t in exported[export].items())


def test_accumulation_equals_a_big_batch(small_run):
    small_run.optim.name, small_run.optim.lr, small_run.train.steps = "sgd", 0.1, 4
    runs = {1: another(small_run, "whole"), 4: another(small_run, "parts")}
    for accumulate, config in runs.items():
        config.train.accumulate = accumulate
        fit(config)
    whole, parts = (final_weights(c)["model"] for c in runs.values())
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-5)
    losses = [[m["loss"] for m in metrics(c) if "loss" in m] for c in runs.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_crashed_run_resumes_exactly(small_run, workers):
    small_run.train.ema_decay, small_run.train.accumulate, small_run.data.repeats = 0.9, 2, 2
    small_run.model.drop_path = small_run.model.patch_dropout = 0.3
    small_run.augment.mixup = small_run.augment.cutmix = 1.0
    small_run.optim.layer_decay, small_run.train.save_every, small_run.train.eval_every = 0.8, 3, 4
    straight, broken = another(small_run, "straight"), another(small_run, "broken")
    fit(straight)
    broken.data.workers = workers
    with pytest.raises(OSError, match="power cut"):
        fit(broken, Sabotaged(broken, [10], crash))  # in the middle of step 5 and of an epoch
    assert metrics(broken)[-1]["step"] == 5
    broken.train.resume = True
    result = fit(broken)
    assert result.step == 8
    assert_equal(final_weights(straight), final_weights(broken))

    def lines(config):
        return [{k: v for k, v in m.items() if k != "images_per_s"} for m in metrics(config)]

    assert lines(straight) == lines(broken)


def test_resuming_a_finished_run_changes_nothing(small_run):
    first = fit(small_run)
    lines, weights = metrics(small_run), final_weights(small_run)
    small_run.train.resume = True
    again = fit(small_run)
    assert (again.step, again.metrics, again.best) == (first.step, first.metrics, first.best)
    assert metrics(small_run) == lines
    assert_equal(final_weights(small_run), weights)


def test_resuming_with_other_options(small_run, caplog):
    small_run.train.steps = 2
    fit(small_run)
    small_run.train.resume, small_run.train.steps = True, 4
    assert fit(small_run).step == 4
    assert "train.steps: 2 -> 4" in caplog.text
    small_run.model.overrides["embed_dim"] = 24
    with pytest.raises(CheckpointError, match="does not fit the options"):
        fit(small_run)


def test_resuming_nothing_starts_a_run(small_run, caplog):
    small_run.train.resume, small_run.train.steps = True, 1
    assert fit(small_run).step == 1
    assert "no checkpoint to resume from" in caplog.text


def test_a_run_is_not_overwritten(small_run):
    small_run.train.steps = 1
    fit(small_run)
    before = metrics(small_run)
    with pytest.raises(ConfigError, match="holds a run already"):
        fit(small_run)
    assert metrics(small_run) == before


def test_a_step_with_nan_gradients_changes_nothing(small_run):
    small_run.train.ema_decay, small_run.train.save_every, small_run.train.keep = 0.9, 1, 100
    for bad in (float("nan"), float("inf")):
        config = another(small_run, str(bad))
        result = fit(config, Sabotaged(config, [3], lambda loss, bad=bad: loss * bad))
        assert result.skipped_steps == 1
        assert_equal(final_weights(config, 3), final_weights(config, 4))
        lines = [m for m in metrics(config) if "grad_norm" in m]
        assert [m["skipped_steps"] for m in lines] == [0, 0, 0, 1, 1, 1, 1, 1]
        assert [m["loss"] is None for m in lines] == [False] * 3 + [True] + [False] * 4
        changed = final_weights(config, 5)["model"], final_weights(config, 4)["model"]
        assert not all(map(torch.equal, changed[0].values(), changed[1].values()))


def test_ten_bad_steps_in_a_row_stop_the_run(small_run):
    small_run.train.steps, small_run.train.save_every = 30, 2
    nine = Sabotaged(small_run, [*range(2, 11), *range(12, 30)], lambda loss: loss * float("nan"))
    with pytest.raises(TrainingError, match="steps 12 to 21 had NaN or infinite gradients and were skipped"):
        fit(small_run, nine)
    assert metrics(small_run)[-1]["skipped_steps"] == 19
    small_run.train.resume = True
    assert fit(small_run).step == 30


def test_clipping(small_run):
    small_run.optim.name, small_run.optim.lr, small_run.optim.weight_decay = "sgd", 1.0, 0.0
    small_run.optim.momentum, small_run.train.save_every, small_run.train.keep = 0.0, 1, 10
    small_run.optim.clip_norm, small_run.schedule.name, small_run.schedule.warmup_steps = 0.01, "constant", 0
    small_run.train.steps = 3
    fit(small_run)
    assert all(m["grad_norm"] > 0.1 for m in metrics(small_run) if "grad_norm" in m)  # before clipping
    a, b = final_weights(small_run, 1)["model"], final_weights(small_run, 2)["model"]
    moved = torch.stack([(a[n] - b[n]).norm() for n in a]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision(small_run, precision):
    small_run.train.precision, small_run.optim.lr, small_run.train.steps = precision, 3e-3, 20
    result = fit(small_run)
    assert result.metrics["eval_top1"] > 0.9
    assert result.skipped_steps <= {"bf16": 0, "fp16": 3}[precision]  # while the loss scale comes down


def test_fp16_scales_the_loss(small_run):
    small_run.train.precision, small_run.train.save_every, small_run.train.keep = "fp16", 1, 100
    fit(small_run, Sabotaged(small_run, [2, 3], lambda loss: loss * float("inf")))
    folder = Path(small_run.train.out) / "checkpoints"
    scales = [checkpoint.load(folder / f"step_{s:06d}").state["scaler"]["scale"] for s in range(1, 9)]
    assert (scales[2], scales[3]) == (scales[1] / 2, scales[1] / 4)
    assert scales[4:] == [scales[3]] * 4


def test_activation_checkpointing_changes_nothing(small_run):
    small_run.model.drop_path, small_run.train.steps = 0.3, 3
    runs = another(small_run, "plain"), another(small_run, "recomputed")
    runs[1].model.checkpoint_activations = True
    for config in runs:
        fit(config)
    assert_equal(final_weights(runs[0]), final_weights(runs[1]))


def test_fine_tuning_at_another_size_and_number_of_classes(small_run, image_root, tmp_path):
    small_run.train.steps = 4
    first = fit(small_run)
    two = tmp_path / "two"
    for split in ("train", "val"):
        shutil.copytree(image_root / split / "red", two / split / "red")
        shutil.copytree(image_root / split / "blue", two / split / "blue")
    tuned = another(small_run, "tuned")
    tuned.data.train, tuned.data.val = str(two / "train"), str(two / "val")
    tuned.model.init_from, tuned.model.img_size = str(first.run_dir / "model"), (48, 40)
    tuned.model.overrides = {}
    tuned.optim.lr = tuned.optim.weight_decay = 0.0
    result = fit(tuned)
    before, after = va.load(first.run_dir / "model"), va.load(result.run_dir / "model")
    assert after.config.img_size == (48, 40)
    assert after.labels == {0: "blue", 1: "red"}
    assert after.pos_embed.shape[1] == 1 + 6 * 5
    assert torch.equal(before.blocks[1].mlp.fc1.weight, after.blocks[1].mlp.fc1.weight)
    assert after.preprocess.size == (48, 40)


def test_epochs_decide_the_number_of_steps(small_run):
    small_run.train.steps, small_run.train.epochs = None, 0.5
    assert fit(small_run).step == 3  # 30 of 60 images in batches of 12


def test_reports(small_run, monkeypatch):
    pytest.importorskip("tensorboard")
    small_run.train.steps, small_run.train.report_to = 2, ("tensorboard",)
    fit(small_run)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(small_run.train.out) / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2]
    missing = another(small_run, "missing")
    missing.train.report_to = ("wandb",)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"train.report_to: wandb is not installed: pip install wandb"):
        fit(missing)


def test_quiet_without_a_terminal(small_run, capfd):
    small_run.train.steps = 1
    fit(small_run)
    assert capfd.readouterr() == ("", "")


def break_images(config, count):
    root = Path(config.train.out).with_name("broken")
    shutil.copytree(config.data.train, root)
    for i in range(count):
        (root / f"red/{i}.{'png' if i % 2 else 'jpg'}").write_bytes(b"broken")
    config.data.train = str(root)


def test_unreadable_images_are_named_once(small_run):
    break_images(small_run, 2)
    small_run.train.steps = 11  # two epochs
    result = fit(small_run)
    named = [json.loads(x) for x in (result.run_dir / "bad_samples.jsonl").read_text().splitlines()]
    assert sorted(n["file"] for n in named) == ["red/0.jpg", "red/1.png"]
    assert all(n["error"] for n in named)
    assert result.bad_samples == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_images_stop_the_run(small_run, workers):
    break_images(small_run, 6)
    small_run.data.workers = workers
    with pytest.raises(DataError) as caught:
        fit(small_run)
    message = str(caught.value)
    assert "of 60 images cannot be read, more than the allowed 5.00%; first: red/" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("group", "option", "value", "error", "message"),
    [
        ("data", "train", "", ConfigError, "data.train: name a folder"),
        ("data", "train", "/nowhere", DataError, "/nowhere: no such file or folder"),
        ("data", "batch_size", 7, ConfigError, "batch size 7 cannot be cut into 2 micro-batches"),
        ("model", "name", "vit_tinny_patch16_224", ConfigError, "did you mean"),
        ("model", "overrides", {"embed_dims": 3}, ConfigError, "embed_dims"),
        ("model", "init_from", "/nowhere", ConfigError, "model.init_from: "),
        ("train", "device", "tpu", ConfigError, "train.device"),
        ("train", "device", "cuda:77", ConfigError, "train.device: cuda:77 is not there"),
        ("train", "out", "/proc/run", CheckpointError, "/proc/run: cannot write"),
        ("optim", "lr", -1.0, ConfigError, "optim.lr: must be at least 0"),
    ],
)
def test_mistakes(small_run, group, option, value, error, message):
    small_run.train.accumulate = 2
    setattr(getattr(small_run, group), option, value)
    with pytest.raises(error) as caught:
        fit(small_run)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_does_not_claim_the_folder(small_run):
    small_run.train.report_to, small_run.train.steps = ("wandb",), 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", None)
        with pytest.raises(ConfigError):
            fit(small_run)
    small_run.train.report_to = ()
    assert fit(small_run).step == 1


def test_unreadable_validation_images_are_named(small_run, tmp_path, caplog):
    shutil.copytree(small_run.data.val, tmp_path / "val")
    (tmp_path / "val/red/1.png").write_bytes(b"broken")
    small_run.data.val, small_run.data.max_bad_fraction, small_run.train.steps = str(tmp_path / "val"), 0.1, 1
    fit(small_run)
    assert "val: 1 images cannot be read, first red/1.png" in caplog.text


def test_validation_folder_with_another_class(small_run, image_root, tmp_path):
    shutil.copytree(image_root / "val", tmp_path / "val")
    (tmp_path / "val/red").rename(tmp_path / "val/pink")
    small_run.data.val = str(tmp_path / "val")
    with pytest.raises(DataError, match="class 'pink' is not one of the 3 classes"):
        fit(small_run)
