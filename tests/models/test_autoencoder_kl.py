# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

import vision_accel as va
from tests import reference_libs
from tests.models import vae_cases
from vision_accel.models import striped
from vision_accel.models.posterior import Posterior

SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 16}


def small(**changes):
    return va.create_model("autoencoder_kl_sd", **{**SMALL, **changes}).eval()


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.fixture(params=vae_cases.CONFIGS, ids=str)
def pair(request, tmp_path):
    """The reference model, and ours loaded from what it saved."""
    model = vae_cases.reference(**vae_cases.CONFIGS[request.param])
    model.save_pretrained(tmp_path)
    return model, va.load(tmp_path)


@pytest.mark.parity
def test_outputs_of_diffusers(pair):
    reference, ours = pair
    x = vae_cases.images(reference)
    with torch.no_grad():
        theirs, mine = reference.encode(x).latent_dist, ours.encode(x)
        assert_close(mine.mean, theirs.mean)
        assert_close(mine.logvar, theirs.logvar)
        images = reference.decode(theirs.mean).sample
        assert_close(ours.decode(theirs.mean), images)
        assert_close(ours(x), reference(x).sample)


@pytest.mark.parity
def test_gradients_of_a_training_loss(pair):
    reference, ours = pair
    x = vae_cases.images(reference, size=(16, 24))
    grads = []
    for model in (reference, ours.train()):
        posterior = model.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
        y = model.decode(posterior.mean + posterior.std * noise).sample
        loss = (y - x.mean(1, keepdim=True)).abs().mean() + 1e-3 * posterior.kl().mean()
        loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    largest = max(g.abs().max() for g in grads[0].values())
    for name, theirs in grads[0].items():
        error = (grads[1][name] - theirs).abs().max()
        assert error <= 1e-4 * theirs.abs().max() + 1e-6 * largest, name


@pytest.mark.parity
def test_posterior_of_diffusers():
    reference_libs.diffusers()
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    moments, others = torch.randn(2, 8, 3, 5) * 3, torch.randn(2, 8, 3, 5)
    moments[0, 4, 0, 0], moments[0, 4, 0, 1] = 100.0, -100.0
    theirs, ours = DiagonalGaussianDistribution(moments), Posterior(moments)
    for name in ("mean", "logvar", "std", "var"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    torch.testing.assert_close(ours.kl(), theirs.kl())
    torch.testing.assert_close(ours.kl(Posterior(others)), theirs.kl(DiagonalGaussianDistribution(others)))
    sample = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(ours.nll(sample), theirs.nll(sample))
    for seeds in (3, [3], [3, 4]):
        draws = []
        for p in (ours, theirs):
            many = [torch.Generator().manual_seed(s) for s in (seeds if isinstance(seeds, list) else [seeds])]
            draws.append(p.sample(many if isinstance(seeds, list) else many[0]))
        assert torch.equal(*draws)
    with pytest.raises(ValueError, match="needs 2 generators, one an image, got 3"):
        ours.sample([torch.Generator()] * 3)
    assert torch.equal(ours.mode(), theirs.mode())


@pytest.mark.parity
def test_a_pipeline_of_diffusers_takes_it():
    diffusers, transformers = reference_libs.diffusers(), reference_libs.transformers()
    reference = vae_cases.reference(**SMALL)
    ours = small()
    ours.load_state_dict(reference.state_dict())
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
    )
    config = transformers.CLIPTextConfig(
        vocab_size=99,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=1,
        eos_token_id=2,
    )
    text = transformers.CLIPTextModel(config)
    results = []
    for vae in (reference, ours):
        pipe = diffusers.StableDiffusionImg2ImgPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=None,
            unet=unet,
            scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(1, 3, 16, 16, generator=generator)
        embeds = torch.randn(1, 7, 16, generator=generator)
        results.append(
            pipe(
                prompt_embeds=embeds,
                image=image,
                strength=0.5,
                num_inference_steps=4,
                guidance_scale=1.0,
                generator=generator,
                output_type="pt",
            ).images
        )
    assert_close(results[1], results[0], 1e-3)


@pytest.mark.parametrize(
    ("name", "millions", "channels"),
    [("sd", 83.65, 4), ("sdxl", 83.65, 4), ("sd3", 83.82, 16), ("flux", 83.82, 16)],
)
def test_variants(name, millions, channels):
    with torch.device("meta"):
        model = va.create_model(f"autoencoder_kl_{name}")
    assert round(model.num_params() / 1e6, 2) == millions
    assert model.config.latent_channels == channels
    assert f"autoencoder_kl_{name}" in va.list_models("autoencoder*")


def test_latents_are_scaled_and_unscaled():
    model = small(scaling_factor=0.5, shift_factor=0.1)
    z = torch.randn(1, 4, 2, 2)
    assert torch.allclose(model.scale_latents(z), (z - 0.1) * 0.5)
    assert torch.allclose(model.unscale_latents(model.scale_latents(z)), z)


def test_calls_of_diffusers():
    model = small()
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        posterior = model.encode(x)
        assert posterior.latent_dist is posterior
        assert model.encode(x, return_dict=False)[0].mean.equal(posterior.mean)
        y = model.decode(posterior.mode())
        assert type(y.sample) is torch.Tensor
        assert type(y + 1) is torch.Tensor
        assert torch.equal(y.sample, model.decode(posterior.mode(), return_dict=False, generator=None)[0])
    model.decode(posterior.mode()).sample.sum().backward()
    assert model.decoder.conv_in.weight.grad.any()


def test_an_image_is_independent_of_the_batch_and_of_threads():
    model = small()
    x = torch.rand(3, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        whole = model(x)
        assert torch.equal(whole[1:2], model(x[1:2]))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        assert torch.equal(whole, model(x))
        torch.set_num_threads(threads)


def test_slicing_changes_nothing_but_memory():
    model = small()
    x = torch.rand(3, 3, 8, 12)
    seen = []
    model.decoder.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    with torch.no_grad():
        whole = model(x)
        model.enable_slicing()
        assert torch.equal(model(x), whole)
        assert model(x[:0]).shape == (0, 3, 8, 12)
        model.disable_slicing()
        model(x)
    assert seen == [3, 1, 1, 1, 0, 3]


class Around(torch.nn.Module):
    """What adapters are: a module in another's place, which takes its input only."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


@pytest.mark.parametrize("max_memory", [None, "300K"])
def test_modules_in_the_place_of_others(max_memory):
    model, doubled = small(), small()
    doubled.load_state_dict(model.state_dict())
    layers = [
        "post_quant_conv",
        "decoder.conv_in",
        "decoder.conv_out",
        "decoder.mid_block.attentions.0.to_out.0",
    ]
    layers += [f"decoder.up_blocks.1.resnets.0.{name}" for name in ("conv1", "conv2", "conv_shortcut")]
    for name in layers:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Around(model.get_submodule(name)))
        for parameter in doubled.get_submodule(name).parameters():
            parameter.data *= 2
    z = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        assert_close(model.decode(z, max_memory=max_memory), doubled.decode(z), 1e-5)


@pytest.mark.parametrize("max_memory", [None, "300K"])
def test_a_hook_sees_the_result_of_its_module(max_memory):
    model = small()
    z = torch.randn(1, 4, 16, 16)
    conv, seen = model.decoder.up_blocks[1].resnets[1].conv2, []
    with torch.no_grad():
        whole = model.decode(z)
        handle = conv.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
        assert_close(model.decode(z, max_memory=max_memory), whole, 1e-6)
        handle.remove()
        ((x, y),) = seen
        assert torch.equal(conv(x), y)
        conv.register_forward_hook(lambda _module, _inputs, output: output * 0)
        assert (model.decode(z, max_memory=max_memory) - whole).abs().max() > 0.01


def test_any_size_is_padded_and_cropped_back():
    model = small()
    x = torch.rand(1, 3, 13, 10)
    with torch.no_grad():
        padded = torch.nn.functional.pad(x, (0, 0, 0, 1), "replicate")
        assert torch.equal(model(x), model(padded)[:, :, :13])


@pytest.fixture
def overflowing():
    """Weights that float16 holds, of a stream that it does not: the reference model and its weights."""
    reference = vae_cases.reference(**SMALL, mid_block_add_attention=True)
    with torch.no_grad():
        for half in (reference.encoder, reference.decoder):
            half.conv_in.weight.mul_(3e5)
            half.conv_in.weight.clamp_(-6e4, 6e4)
            for block in half.mid_block.resnets:
                block.conv2.weight.mul_(1e5)
        for conv in (
            reference.encoder.down_blocks[0].downsamplers[0].conv,
            reference.decoder.up_blocks[0].upsamplers[0].conv,
        ):
            conv.weight.mul_(4)
        for part in (reference.encoder.down_blocks[1], reference.decoder.up_blocks[1]):
            part.resnets[0].conv_shortcut.weight.mul_(4)
    return reference


def of_the_stream(model, name):
    """The convolutions that read the stream of a half of the model."""
    half = getattr(model, name)
    ends = ("downsamplers.0.conv", "upsamplers.0.conv", "conv_shortcut")
    return [m for n, m in half.named_modules() if n.endswith(ends)]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float16, False), (torch.bfloat16, False), (torch.float16, True), (torch.bfloat16, True)],
    ids=["float16", "bfloat16", "autocast to float16", "autocast to bfloat16"],
)
def test_no_overflow_where_diffusers_overflows(overflowing, name, dtype, autocast):
    """As with SDXL's weights: the stream is larger than float16 holds, norms bring it down again."""
    models = {"theirs": overflowing, "wide": small(), "ours": small()}
    state = {n: p.to(dtype).float() for n, p in overflowing.state_dict().items()}
    for model in models.values():
        model.load_state_dict(state)
    seen = []  # what the stream reaches in front of and behind each convolution of it
    for conv in of_the_stream(models["wide"], name):
        conv.register_forward_hook(lambda _m, x, y: seen.extend(float(t.abs().max()) for t in (x[0], y)))
    if not autocast:
        models["theirs"].to(dtype)
        models["ours"].to(dtype)
    x = torch.randn(1, *((3, 24, 32) if name == "encoder" else (4, 12, 16))).to(dtype).float()
    results = {}
    with torch.no_grad():
        for which, model in models.items():
            given = x.to(model.dtype)
            with torch.autocast("cpu", dtype, enabled=autocast and which != "wide"):
                if name == "encoder":
                    posterior = model.encode(given).latent_dist
                    results[which] = torch.cat([posterior.mean, posterior.logvar], 1)
                else:
                    results[which] = model.decode(given).sample
        with torch.autocast("cpu", dtype, enabled=autocast):
            inner, rows = getattr(models["ours"], name), x.to(models["ours"].dtype).permute(0, 2, 3, 1)
            whole = inner(rows.contiguous())
            stripes = getattr(striped, name[:-1])(inner, rows.contiguous(), striped.Plan(0, 10**6))
    assert len(seen) == 4
    assert min(seen) > 65504
    assert results["theirs"].isfinite().all() == (dtype == torch.bfloat16)
    tolerance = 0.01 if dtype == torch.float16 else 0.06
    assert results["ours"].isfinite().all()
    assert_close(results["ours"].float(), results["wide"], tolerance)
    assert_close(stripes.float(), whole.float(), tolerance)


def test_checkpointed_gradients_are_the_same():
    model = small().train()
    x = torch.rand(1, 3, 8, 8)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_exports():
    model = small()
    z = torch.randn(1, 4, 4, 4)
    compiled = torch.compile(model.decode, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(z), model.decode(z))


def test_nan_gives_nan():
    z = torch.randn(1, 4, 4, 4)
    z[0, 0, 0, 0] = float("nan")
    with torch.no_grad():
        assert small().decode(z).isnan().any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(torch.zeros(1, 4, 8, 8)), r"x must be \[B, 3, h, w\], got \[1, 4, 8, 8\]"),
        (lambda m: m.encode(torch.zeros(3, 8, 8)), r"x must be \[B, 3, h, w\], got \[3, 8, 8\]"),
        (lambda m: m.encode(torch.zeros(1, 3, 9, 8)), "must be multiples of 2, got 9 x 8"),
        (lambda m: m.encode(torch.zeros(1, 3, 0, 8)), "must be multiples of 2, got 0 x 8"),
        (lambda m: m.decode(torch.zeros(1, 5, 8, 8)), r"z must be \[B, 4, h, w\], got \[1, 5, 8, 8\]"),
        (lambda m: m(torch.zeros(3, 8, 8)), r"x must be \[B, 3, h, w\]"),
        (lambda _: small(norm_num_groups=5), "norm_num_groups=5 must divide the width 32"),
        (lambda _: small(layers_per_block=0), "layers_per_block must be positive"),
        (lambda _: va.create_model("autoencoder_kl_sd9"), "unknown model 'autoencoder_kl_sd9'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(small())


def test_unknown_option():
    with pytest.raises(TypeError, match="no option 'latent_chanels'; did you mean 'latent_channels'"):
        small(latent_chanels=3)
