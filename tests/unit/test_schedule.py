"""Sizes, updates and positions, against numbers by hand and accelerate's own sharding."""

import math

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from sera_plugin.data.schedule import Batching, Position, RoundSize, kept_count, plan, share_of

relaxed = settings(deadline=None)
shares = st.floats(0, 1, allow_nan=False)


@pytest.mark.parametrize(
    ("share", "pairs", "expected"),
    [
        (0.0, 10, 0),
        (0.7, 10, 7),
        (0.3, 10, 3),
        (0.25, 10, 3),  # 2.5 goes up
        (0.24, 10, 2),
        (0.01, 10, 1),  # a positive share is never nothing
        (1.0, 10, 10),
        (0.7, 61135, 42795),  # 42794.5
        (0.3, 61135, 18341),  # 18340.5
    ],
)
def test_share_of_by_hand(share, pairs, expected):
    assert share_of(share, pairs) == expected


@given(shares, shares, st.integers(1, 100_000))
def test_share_of_is_monotone_and_within_bounds(a, b, pairs):
    low, high = share_of(min(a, b), pairs), share_of(max(a, b), pairs)
    assert 0 <= low <= high <= pairs
    assert (low > 0) == (min(a, b) > 0)


@pytest.mark.parametrize(
    ("keep", "pairs", "expected"),
    [(1, 10, 10), (1.0, 10, 10), (2, 10, 2), (10, 10, 10), (0.5, 9, 5)],
)
def test_kept_count_by_hand(keep, pairs, expected):
    assert kept_count(keep, pairs) == expected


def test_kept_count_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="11 pairs can't be kept of 10"):
        kept_count(11, 10)


@pytest.mark.parametrize(
    ("batching", "pairs", "batches", "updates"),
    [
        (Batching(2, 4, 1), 10, 5, 2),
        (Batching(2, 4, 2), 10, 3, 1),  # 5 micro-batches over 2 ranks: 3 each, one repeated
        (Batching(2, 2, 2), 10, 3, 2),
        (Batching(2, 4, 1, drop_last=True), 11, 5, 2),
        (Batching(4, 1, 3, drop_last=True), 23, 1, 1),  # 5 whole micro-batches, 3 at a time
        (Batching(4, 1, 3, drop_last=True), 11, 0, 0),
    ],
)
def test_batches_and_updates_by_hand(batching, pairs, batches, updates):
    assert (batching.batches(pairs), batching.updates(pairs)) == (batches, updates)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("per_device", [1, 2, 4, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_those_that_accelerate_deals_out(ranks, per_device, drop_last):
    batching = Batching(per_device, 1, ranks, drop_last)
    for pairs in range(1, 42):
        loader = DataLoader(range(pairs), batch_size=per_device, drop_last=drop_last)
        shards = [BatchSamplerShard(loader.batch_sampler, ranks, rank) for rank in range(ranks)]
        assert [len(shard) for shard in shards] == [batching.batches(pairs)] * ranks
        assert [len(list(shard)) for shard in shards] == [batching.batches(pairs)] * ranks


def schedule_of(pairs=10, **changes):
    options = {
        "num_rounds": 3,
        "warmup_rounds": 1,
        "keep": 0.7,
        "fraction": 0.3,
        "batching": Batching(2, 2, 1),
        "max_steps": None,
    }
    return plan(pairs, **{**options, **changes})


def test_plan_by_hand():
    schedule = schedule_of(keep=4, fraction=0.25)
    assert schedule.rounds == (
        RoundSize(1, 10, 0, False),
        RoundSize(2, 4, 3, True),
        RoundSize(3, 4, 3, True),
    )
    assert [size.total for size in schedule.rounds] == [10, 7, 7]
    # 10 pairs are 5 micro-batches and 3 updates; 7 are 4 and 2.
    assert schedule.updates == (3, 2, 2)
    assert (schedule.max_steps, schedule.last_round) == (7, 3)


@pytest.mark.parametrize(
    ("max_steps", "expected", "last_round"),
    [(1, 1, 1), (3, 3, 1), (4, 4, 2), (5, 5, 2), (6, 6, 3), (7, 7, 3), (100, 7, 3), (None, 7, 3)],
)
def test_max_steps_caps_the_run(max_steps, expected, last_round):
    schedule = schedule_of(keep=4, fraction=0.25, max_steps=max_steps)
    assert (schedule.max_steps, schedule.last_round) == (expected, last_round)


def test_keep_changes_by_round_and_the_last_one_repeats():
    schedule = schedule_of(num_rounds=5, keep=(1.0, 4, 0.55), fraction=0.0)
    assert [size.kept for size in schedule.rounds] == [10, 10, 4, 6, 6]
    assert [size.reviewed for size in schedule.rounds] == [False, True, True, True, True]
    with pytest.raises(ValueError, match="11 pairs can't be kept of 10"):
        schedule_of(keep=(0.5, 11))


def test_plan_refuses_a_round_without_an_update():
    with pytest.raises(ValueError, match="a round of 3 pairs gives no optimizer update"):
        schedule_of(keep=3, fraction=0.0, batching=Batching(4, 1, 1, drop_last=True))


def test_locate_by_hand():
    schedule = schedule_of(keep=4, fraction=0.25)
    assert [schedule.locate(step) for step in range(8)] == [
        Position(0, 0),
        Position(0, 1),
        Position(0, 2),
        Position(1, 0),
        Position(1, 1),
        Position(2, 0),
        Position(2, 1),
        Position(3, 0),
    ]


@pytest.mark.parametrize("step", [-1, 8])
def test_locate_refuses_steps_beyond_the_schedule(step):
    with pytest.raises(ValueError, match=f"global step {step} is beyond the schedule of 7 updates"):
        schedule_of(keep=4, fraction=0.25).locate(step)


@relaxed
@given(
    pairs=st.integers(1, 500),
    warmup_rounds=st.integers(1, 3),
    reviewed=st.integers(1, 4),
    keep=st.floats(0.01, 1),
    fraction=shares,
    batching=st.builds(Batching, st.integers(1, 8), st.integers(1, 8), st.integers(1, 8)),
)
def test_plan_and_locate_agree(pairs, warmup_rounds, reviewed, keep, fraction, batching):
    schedule = plan(
        pairs,
        num_rounds=warmup_rounds + reviewed,
        warmup_rounds=warmup_rounds,
        keep=keep,
        fraction=fraction,
        batching=batching,
    )
    assert [size.number for size in schedule.rounds] == list(range(1, warmup_rounds + reviewed + 1))
    assert [size.reviewed for size in schedule.rounds] == [False] * warmup_rounds + [
        True
    ] * reviewed
    for size, updates in zip(schedule.rounds, schedule.updates, strict=True):
        whole_batch = batching.per_device * batching.accumulation * batching.ranks
        assert updates == math.ceil(size.total / whole_batch)
    # `locate` undoes the cumulative sums.
    step = 0
    for epoch, updates in enumerate(schedule.updates):
        for done in range(updates):
            assert schedule.locate(step) == Position(epoch, done)
            step += 1
    assert step == schedule.max_steps
    assert schedule.locate(step) == Position(len(schedule.rounds), 0)
