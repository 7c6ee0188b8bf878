# SPDX-License-Identifier: Apache-2.0
"""Weights so large that float16 overflows behind a norm, in attention or in the result."""

import copy
import re

import pytest
import torch

import vision_accel as va

# A weight that is made large, and the layer that then overflows.
CASES = {
    "norm in front of a block": ("decoder.up_blocks.0.resnets.0.norm1", "decoder.up_blocks.0.resnets.0"),
    "norm inside a block": ("encoder.down_blocks.1.resnets.0.norm2", "encoder.down_blocks.1.resnets.0"),
    "values of the attention": ("decoder.mid_block.attentions.0.to_v", "decoder.mid_block.attentions.0"),
}


def models(enlarged):
    """A model in float16 with a layer whose weights are as large as it holds, and the same in float32."""
    torch.manual_seed(0)
    wide = va.create_model("autoencoder_kl_sd", block_out_channels=(32, 64), norm_num_groups=16).eval()
    weight = wide.get_submodule(enlarged).weight.data
    weight.mul_(6e4 / weight.abs().max())
    narrow = copy.deepcopy(wide).half()
    wide.load_state_dict(narrow.state_dict())
    return narrow, wide


def call(model, name, max_memory=None):
    """What a half of the model makes of the same input every time."""
    generator = torch.Generator().manual_seed(1)
    if name.startswith("encoder"):
        x = torch.randn(1, 3, 128, 96, generator=generator).half().to(model.dtype)
        return model.encode(x, max_memory=max_memory).mean
    z = torch.randn(1, 4, 64, 48, generator=generator).half().to(model.dtype)
    return model.decode(z, max_memory=max_memory).sample


@pytest.mark.parametrize("max_memory", [None, "6MB"])
@pytest.mark.parametrize(("enlarged", "layer"), CASES.values(), ids=CASES)
@torch.no_grad()
def test_a_layer_that_overflows_becomes_float32(enlarged, layer, max_memory):
    narrow, wide = models(enlarged)
    expected = call(wide, layer)
    with pytest.warns(RuntimeWarning, match=rf"overflows in {re.escape(layer)}: computed in float32") as seen:
        first = call(narrow, layer, max_memory)
    assert len(seen) == 1
    assert first.dtype == torch.float16
    assert (first.float() - expected).abs().max() <= 0.003 * expected.abs().max()
    assert torch.equal(call(narrow, layer, max_memory), first)  # remembered: no warning
    changed = {n for n, p in narrow.named_parameters() if p.dtype == torch.float32}
    assert changed == {n for n, _ in narrow.named_parameters() if n.startswith(layer)}


@pytest.mark.parametrize(
    ("enlarged", "message"),
    [
        (
            "decoder.conv_norm_out",
            "in decoder.conv_norm_out: .*; results of the decoder are limited to 65504",
        ),
        ("decoder.conv_out", "AutoencoderKL: results of the decoder are limited to 65504"),
        ("quant_conv", "AutoencoderKL: results of the encoder are limited to 65504"),
    ],
)
@torch.no_grad()
def test_a_result_that_float16_does_not_hold_is_limited(enlarged, message):
    narrow, wide = models(enlarged)
    half = re.search("results of the (encoder|decoder)", message)[1]
    expected = call(wide, half)
    assert expected.abs().max() > 65504
    with pytest.warns(RuntimeWarning, match=message):
        y = call(narrow, half).float()
    assert (y - expected.clamp(-65504, 65504)).abs().max() <= 0.003 * expected.abs().max()


@torch.no_grad()
def test_what_is_not_finite_is_no_overflow():
    narrow, _ = models("decoder.conv_in")
    z = torch.full((1, 4, 8, 8), torch.nan, dtype=torch.float16)
    assert narrow.decode(z).isnan().all()
    narrow.decoder.conv_norm_out.weight[3] = torch.nan
    assert call(narrow, "decoder").isnan().any()


def test_training_and_compiled_models_are_left_alone():
    narrow, _ = models(CASES["norm in front of a block"][0])
    narrow.train()
    assert not call(narrow, "decoder").isfinite().all()
    narrow.eval()
    z = torch.randn(1, 4, 8, 8).half()
    with torch.no_grad():
        compiled = torch.compile(narrow.decode, fullgraph=True, backend="aot_eager")(z)
    assert not compiled.isfinite().all()
    assert {p.dtype for p in narrow.parameters()} == {torch.float16}
