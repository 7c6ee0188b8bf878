# SPDX-License-Identifier: Apache-2.0
import torch
from torch import nn

from vision_accel.train.ema import Ema


def set_weights(model, value):
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)


def test_follows_the_weights():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    set_weights(model, 1.0)
    ema = Ema(model, decay=0.9, warmup=False)
    expected = 1.0
    for value in (2.0, 5.0, -1.0):
        set_weights(model, value)
        model[1].num_batches_tracked += 1
        ema.update(model)
        expected = 0.9 * expected + 0.1 * value
    torch.testing.assert_close(ema.model[0].weight, torch.full((2, 2), expected), rtol=1e-6, atol=1e-6)
    assert ema.model[1].num_batches_tracked == 3
    assert torch.equal(model[0].weight, torch.full((2, 2), -1.0))
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not ema.model.training


def test_warmup_values():
    model = nn.Linear(1, 1)
    set_weights(model, 0.0)
    ema = Ema(model, decay=0.5)
    set_weights(model, 1.0)
    left = 1.0  # share of the first weights
    for decay in (1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5):
        ema.update(model)
        left *= decay
        torch.testing.assert_close(ema.model.weight, torch.full((1, 1), 1 - left), rtol=1e-5, atol=0)
