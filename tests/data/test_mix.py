# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from tests import reference_libs
from vision_accel.data.mix import mix


class Legacy:
    """numpy's global generator behind the interface of the new ones: the stream that timm draws from."""

    random = staticmethod(np.random.rand)
    beta = staticmethod(np.random.beta)
    integers = staticmethod(np.random.randint)


@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [
        {"mixup": 0.8},
        {"cutmix": 1.0},
        {"mixup": 0.8, "cutmix": 1.0},
        {"mixup": 0.2, "cutmix": 0.4, "prob": 0.6, "switch_prob": 0.3},
    ],
)
def test_equals_timm(options):
    theirs = reference_libs.timm().data.Mixup(
        mixup_alpha=options.get("mixup", 0.0),
        cutmix_alpha=options.get("cutmix", 0.0),
        prob=options.get("prob", 1.0),
        switch_prob=options.get("switch_prob", 0.5),
        label_smoothing=0.1,
        num_classes=7,
    )
    for seed in range(20):
        x, y = torch.randn(6, 3, 20, 14), torch.randint(7, (6,))
        np.random.seed(seed)  # noqa: NPY002
        images, targets = mix(x, y, 7, Legacy, **options)
        np.random.seed(seed)  # noqa: NPY002
        expected_images, expected_targets = theirs(x.clone(), y)
        torch.testing.assert_close(images, expected_images)
        torch.testing.assert_close(targets * 0.9 + 0.1 / 7, expected_targets)


def test_does_not_change_its_input_and_is_pure():
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
    before = x.clone()
    results = [mix(x, y, 3, np.random.default_rng(i), mixup=1.0, cutmix=1.0) for i in (1, 1, 2)]
    assert torch.equal(x, before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_target_is_the_share_of_pixels():
    x = torch.stack([torch.full((1, 16, 16), float(i)) for i in range(2)])
    for seed in range(30):
        images, targets = mix(x, torch.tensor([0, 1]), 2, np.random.default_rng(seed), cutmix=1.0)
        torch.testing.assert_close(images.mean(dim=(1, 2, 3)), targets[:, 1])
        torch.testing.assert_close(targets.sum(1), torch.ones(2))


@pytest.mark.parametrize("options", [{}, {"mixup": 1.0, "prob": 0.0}])
def test_off(options):
    x, y = torch.randn(3, 3, 4, 4), torch.tensor([2, 0, 1])
    images, targets = mix(x, y, 3, np.random.default_rng(0), **options)
    assert torch.equal(images, x)
    assert torch.equal(targets, torch.eye(3)[y])
