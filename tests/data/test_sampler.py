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


def images(order, epoch):
    return [order[epoch * order.size + i].image for i in range(order.size)]


def test_weights_of_sources():
    """Each source has its share of every epoch, and goes through all its samples before one comes again."""
    order = Order([40, 10, 50], seed=1, weights=[1, 3, 0])
    epochs = [images(order, e) for e in range(4)]
    drawn = np.array(epochs)
    assert ((drawn < 40).sum(1) == 25).all()
    assert ((drawn >= 40) & (drawn < 50)).sum() == 4 * 75
    assert drawn.max() == 49
    first = drawn[drawn < 40]
    assert sorted(first[:40]) == sorted(first[40:80]) == list(range(40))
    second = drawn[(drawn >= 40) & (drawn < 50)]
    assert all(sorted(second[i : i + 10]) == list(range(40, 50)) for i in range(0, 300, 10))
    keys = [order[p] for p in range(400)]
    assert len(set(keys)) == 400  # the same sample is augmented differently each time
    assert [order[p] for p in range(399, -1, -1)] == keys[::-1]
    assert images(Order([40, 10, 50], seed=2, weights=[1, 3, 0]), 0) != epochs[0]
    assert order[10**6].epoch == 10**4
    for weights in ([1, 2], [1, -1, 1], [0, 0, 0]):
        with pytest.raises(ValueError, match="one weight for each of 3 sources"):
            Order([40, 10, 50], 0, weights=weights)


def test_drawing_with_replacement():
    order = Order([600, 400], seed=0, replace=True)
    drawn = np.array(images(order, 0))
    assert (drawn < 600).sum() == 600  # sources keep their shares
    assert 580 < len(np.unique(drawn)) < 680  # 1 - 1/e of them
    assert len({order[p] for p in range(1000)}) == 1000
    assert images(order, 1) != drawn.tolist()
    shares = np.array(images(Order([600, 400], 0, weights=[1, 9], replace=True), 3))
    assert (shares < 600).sum() == 100


@pytest.mark.parametrize("size", [1, 7, 999, 1000])
def test_blocks_keep_neighbours_near(size):
    order = Order(size, seed=4, block=8)
    for epoch in range(2):
        drawn = images(order, epoch)
        assert sorted(drawn) == list(range(size))
        for start in range(0, size, 256):  # 32 blocks, perhaps with a short one among them
            assert len({i // 8 for i in drawn[start : start + 256]}) <= 34
    assert size < 100 or drawn[:256] != sorted(drawn[:256])
