# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import numpy as np
import pytest

from vision_accel.data.sampler import BatchPlan, Key, Order, Stream, generator


def test_each_epoch_is_a_new_permutation():
    order = Order(50, seed=3)
    epochs = [[order[50 * e + i] for i in range(50)] for e in range(3)]
    assert all(sorted(k.image for k in keys) == list(range(50)) for keys in epochs)
    assert all(k.epoch == e for e, keys in enumerate(epochs) for k in keys)
    assert len({tuple(k.image for k in keys) for keys in epochs}) == 3


def test_order_is_pure():
    forward = [Order(30, 1)[p] for p in range(90)]
    assert [Order(30, 1)[p] for p in reversed(range(90))] == forward[::-1]
    assert [Order(30, 2)[p] for p in range(90)] != forward


def test_order_stays_the_same_for_ever():
    """Frozen values: a changed order would break the exact resumption of runs started before the change."""
    assert [Order(10, seed=0)[p].image for p in range(20)] == FROZEN
    code = "from vision_accel.data.sampler import Order; print([Order(10, 0)[p].image for p in range(20)])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(FROZEN)


FROZEN = [9, 7, 2, 0, 4, 3, 5, 6, 1, 8, 3, 4, 0, 6, 5, 2, 7, 9, 8, 1]


def test_repeated_augmentation():
    keys = [Order(4, 0, repeats=3)[p] for p in range(24)]
    assert [k.draw for k in keys] == [0, 1, 2] * 8
    assert all(len({k.image for k in keys[i : i + 3]}) == 1 for i in range(0, 24, 3))
    assert [k.epoch for k in keys] == [0] * 12 + [1] * 12


def test_generators_are_independent():
    places = [(0, Stream.AUGMENT, 0, 0, 0), (0, Stream.AUGMENT, 0, 1, 0), (0, Stream.AUGMENT, 1, 0, 0)]
    places += [
        (1, Stream.AUGMENT, 0, 0, 0),
        (0, Stream.REPLACE, 0, 0, 0),
        (0, Stream.AUGMENT, 0, 0),
        (0, Stream.MIX, 0),
    ]
    drawn = {generator(*place).integers(2**63) for place in places}
    assert len(drawn) == len(places)
    assert np.array_equal(generator(*places[0]).random(5), generator(*places[0]).random(5))


def test_steps_cut_the_order_without_gaps():
    plan = list(BatchPlan(Order(10, 0), batch_size=4, start=0, stop=5))
    assert [k for batch in plan for k in batch] == [Order(10, 0)[p] for p in range(20)]


@pytest.mark.parametrize(("accumulate", "world"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_a_step_holds_the_same_images_however_it_is_shared(accumulate, world):
    order = Order(10, 0)
    plans = [list(BatchPlan(order, 8, 0, 5, accumulate, rank, world)) for rank in range(world)]
    assert all(len(p) == 5 * accumulate for p in plans)
    for step in range(5):
        turns = range(step * accumulate, (step + 1) * accumulate)
        seen = [k for turn in turns for plan in plans for k in plan[turn]]
        assert seen == [order[p] for p in range(8 * step, 8 * step + 8)]


def test_a_plan_continues_where_it_stopped():
    whole = list(BatchPlan(Order(7, 0), 6, 0, 9, accumulate=2))
    for start in range(9):
        rest = BatchPlan(Order(7, 0), 6, start, 9, accumulate=2)
        assert list(rest) == whole[2 * start :]
        assert len(rest) == len(whole[2 * start :])


def test_batch_that_cannot_be_shared():
    with pytest.raises(ValueError, match="batch size 10 cannot be cut into 3 micro-batches on 2 processes"):
        BatchPlan(Order(10, 0), 10, 0, 1, accumulate=3, world=2)


def test_key_is_what_augmentation_is_seeded_with():
    assert Key(1, 2) == (1, 2, 0)
