# SPDX-License-Identifier: Apache-2.0
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vision_accel as va
from tests import reference_libs
from vision_accel.data.folder import ImageFiles
from vision_accel.data.source import DataError
from vision_accel.train import Config, ConfigError, checkpoint, fit
from vision_accel.train.autoencode_options import AutoencodeOptions
from vision_accel.train.discriminator import (
    PatchDiscriminator,
    discriminator_loss,
    load_lpips,
    psnr,
    ssim,
)
from vision_accel.train.tasks.autoencode import Adversaries


@pytest.fixture
def options(image_root, tmp_path):
    """A tiny autoencoder with everything on, on 32 x 32 crops."""
    config = Config(task="autoencode")
    config.data.train, config.data.val = str(image_root / "train"), str(image_root / "val")
    config.data.batch_size, config.data.workers, config.data.eval_batch_size = 4, 0, 8
    config.model.name, config.model.img_size = "autoencoder_kl_sd", 32
    config.model.overrides = {"block_out_channels": "8,16", "layers_per_block": 1, "norm_num_groups": 4}
    config.optim.lr = 1e-3
    config.train.out, config.train.device, config.train.log_every = str(tmp_path / "run"), "cpu", 1
    config.train.steps, config.train.save_every, config.train.ema_decay = 4, 2, 0.9
    config.autoencode.disc_weight, config.autoencode.disc_start = 0.5, 1
    return config


def weights(config, step):
    return checkpoint.load(Path(config.train.out) / f"checkpoints/step_{step:06d}").tensors


def small(**options):
    torch.manual_seed(0)
    changes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    vae = va.create_model("autoencoder_kl_sd", **changes)
    return Adversaries(vae, AutoencodeOptions(**options), 1)


def test_run(options):
    result = fit(options)
    run = Path(options.train.out)
    assert set(result.metrics) == {"eval_psnr", "eval_ssim", "eval_l1"}
    assert result.metrics["eval_psnr"] > 5
    with Image.open(run / "reconstructions.png") as picture:
        assert picture.size == (8 * 32, 2 * 32)
    model = va.load(run / "model")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    assert (run / "curves.png").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumes_bit_exactly(options, accumulate, tmp_path):
    options.train.accumulate = accumulate
    fit(options)
    expected = weights(options, 4)
    options.train.out, options.train.steps = str(tmp_path / "again"), 2
    options.schedule.name, options.schedule.warmup_steps = "constant", 0
    fit(options)
    half = Path(options.train.out)
    options.train.out = str(tmp_path / "whole")
    options.train.steps = 4
    fit(options)
    expected = weights(options, 4)
    options.train.out, options.train.resume = str(half), True
    fit(options)
    resumed = weights(options, 4)
    assert expected.keys() == resumed.keys()
    for stem, tensors in expected.items():
        assert tensors.keys() == resumed[stem].keys()
        assert all(torch.equal(t, resumed[stem][n]) for n, t in tensors.items()), stem
    assert any(n.startswith("discriminator.") for n in expected["optimizer"])


def test_both_networks_learn(options):
    options.train.save_every, options.autoencode.disc_start = 1, 2
    fit(options)
    before, at_start, after = (weights(options, s)["model"] for s in (2, 3, 4))

    def moved(a, b, prefix):
        return any(not torch.equal(a[n], b[n]) for n in a if n.startswith(prefix) and "weight" in n)

    assert moved(before, at_start, "vae.")
    assert moved(before, after, "discriminator.")
    assert moved(at_start, after, "discriminator.")


def test_neither_learns_from_the_loss_of_the_other():
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    model = small(disc_weight=0.5, disc_start=0, disc_adaptive=False)
    torch.manual_seed(1)
    model(x).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    # The same by two separate backward passes, as the paper has it.
    twin = small(disc_weight=0.5, disc_start=0, disc_adaptive=False)
    torch.manual_seed(1)
    posterior = twin.vae.encode(x)
    fake = twin.vae.decode(posterior.sample()).sample
    loss = (fake - x).abs().mean() + 1e-6 * posterior.kl().mean() / x[0].numel()
    generator = list(twin.vae.parameters())
    for p, g in zip(
        generator, torch.autograd.grad(loss - 0.5 * twin.discriminator(fake).mean(), generator), strict=True
    ):
        p.grad = g
    real, false = twin.discriminator(torch.cat([x, fake.detach()])).chunk(2)
    discriminator_loss(real, false, "hinge").backward()
    for name, p in twin.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, rtol=1e-4, atol=1e-6)


def test_adaptive_weight_balances_the_gradients():
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    grads = []
    for weight in (0.0, 1.0):
        model = small(disc_weight=weight, disc_start=0)
        torch.manual_seed(1)
        model(x).backward()
        grads.append(model.vae.decoder.conv_out.weight.grad)
    added = (grads[1] - grads[0]).norm()
    assert 0.9 < added / grads[0].norm() < 1.1


def test_decoder_only():
    model = small(decoder_only=True)
    model(torch.rand(1, 3, 32, 32)).backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all(n.startswith(("vae.decoder", "vae.post_quant_conv")) for n in trained)


def test_discriminator_losses():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.0])
    assert discriminator_loss(real, fake, "hinge") == pytest.approx(0.5 * (0.5 + 1.0))
    vanilla = 0.5 * (np.log1p(np.exp([-2.0, 0.0])).mean() + np.log1p(np.exp([-2.0, 1.0])).mean())
    assert float(discriminator_loss(real, fake, "vanilla")) == pytest.approx(vanilla)
    assert PatchDiscriminator(3)(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 6, 6)


def test_metrics_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    x = torch.rand(2, 3, 24, 30)
    y = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    for i in range(2):
        a, b = (t[i].double().numpy() for t in (x, y))
        want = metrics.peak_signal_noise_ratio(a, b, data_range=1)
        assert float(psnr(x, y)[i]) == pytest.approx(want)
        want = metrics.structural_similarity(
            a, b, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(ssim(x, y)[i]) == pytest.approx(want, abs=1e-6)


def test_image_files(image_root, tmp_path):
    files = ImageFiles(image_root / "train")
    assert len(files) == 60
    assert files.name(0) == "blue/0.jpg"
    assert files.path(59).is_file()
    with pytest.raises(DataError, match="no images"):
        ImageFiles(tmp_path)
    with pytest.raises(DataError, match="cannot read"):
        ImageFiles(tmp_path / "missing")


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("model", {"img_size": 33}, "model.img_size: must be a multiple of 2, got 33 x 33"),
        ("model", {"img_size": 16}, "discriminator needs images of at least 32 x 32"),
        ("model", {"name": "vit_tiny_patch16_224", "overrides": {}}, "is a ViT, not an AutoencoderKL"),
        ("model", {"overrides": {"latent_chanels": 2}}, "did you mean 'latent_channels'"),
        ("model", {"overrides": {"block_out_channels": "[8"}}, "must be numbers with commas, got .\\[8"),
        ("model", {"overrides": {"in_channels": 1}}, r"images have 3 channels, .* takes and makes \(1, 3\)"),
        ("autoencode", {"perceptual_weights": "nowhere.pth"}, "no such file: nowhere.pth"),
        ("autoencode", {"kl_weight": -1.0}, "autoencode.kl_weight: must be at least 0"),
        ("data", {"train": ""}, "name a folder of images"),
    ],
)
def test_bad_options(options, group, values, message):
    for name, value in values.items():
        setattr(getattr(options, group), name, value)
    with pytest.raises(ConfigError, match=message):
        fit(options)


def test_training_without_lpips_says_so(options, caplog):
    fit(options)
    assert "perceptual_weights: not given, so that the loss has no LPIPS" in caplog.text
    caplog.clear()
    options.autoencode.perceptual_weight, options.train.out = 0.0, f"{options.train.out}2"
    fit(options)
    assert "LPIPS" not in caplog.text


def test_lpips_without_the_package(options, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    file = tmp_path / "lpips.pth"
    file.write_bytes(b"")
    options.autoencode.perceptual_weights = str(file)
    with pytest.raises(ConfigError, match="pip install lpips"):
        fit(options)


@pytest.mark.parity
def test_lpips_is_that_of_the_package(tmp_path):
    reference_libs.diffusers()  # makes torchvision importable
    lpips = pytest.importorskip("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).eval()
    torch.save(plain.state_dict(), tmp_path / "lpips.pt")
    ours = load_lpips(str(tmp_path / "lpips.pt"))
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    y = (x + 0.1).requires_grad_()
    assert torch.equal(ours(y, x), plain(y, x))
    ours(y, x).mean().backward()
    assert y.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in ours.parameters())
    (tmp_path / "other.pt").write_text("no weights")
    with pytest.raises(ConfigError, match="holds more than tensors, or is damaged"):
        load_lpips(str(tmp_path / "other.pt"))
