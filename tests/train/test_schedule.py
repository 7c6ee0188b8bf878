# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vision_accel.train.config import ScheduleOptions
from vision_accel.train.schedule import learning_rate


def rates(total=100, peak=2.0, **options):
    return [learning_rate(ScheduleOptions(**options), peak, s, total) for s in range(total)]


@pytest.mark.parametrize("name", ["cosine", "constant", "cooldown"])
def test_warmup_is_linear_and_reaches_the_peak(name):
    found = rates(name=name, warmup_fraction=0.1)
    assert found[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert max(found) == pytest.approx(2.0)
    assert rates(name=name, warmup_fraction=0.5, warmup_steps=10) == found
    assert rates(name=name, warmup_steps=0)[0] == 2.0


def test_cosine_equals_torch():
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([weight], lr=2.0), 80, eta_min=0.3)
    expected = []
    for _ in range(80):
        expected.append(theirs.get_last_lr()[0])
        theirs.optimizer.step()
        theirs.step()
    assert rates(warmup_steps=20, final_lr=0.3)[20:] == pytest.approx(expected)


def test_constant():
    assert rates(name="constant", warmup_steps=3)[3:] == [2.0] * 97


def test_cooldown():
    found = rates(name="cooldown", warmup_steps=0, cooldown_fraction=0.2, final_lr=1.0)
    assert found[:81] == [2.0] * 81
    assert found[80:] == pytest.approx([1.0 + (20 - i) / 20 for i in range(20)])


def test_warmup_longer_than_the_run():
    assert rates(total=5, warmup_steps=10) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
