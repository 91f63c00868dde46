"""Rounds of exactly the planned size, in an order that seed and ids alone determine."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sera_plugin.data.candidates import BootstrappedPair, Candidate, Pool, Source
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.rounds import (
    Composition,
    RoundDataset,
    RoundRow,
    compose,
    full_round,
    rows_of,
)

relaxed = settings(deadline=None)


def fresh(example_id):
    best = Candidate((7, 8, 9), Source.POLICY, True, 2.0, -3.0, -5.0)
    worst = Candidate((6,), Source.REJECTED, True, -1.0, -4.0, -3.0)
    return BootstrappedPair(example_id, best, worst, 0.3, Pool(example_id, (best, worst)))


def test_compose_by_hand():
    pairs = [fresh("d"), fresh("a")]
    assert compose("abcde", 3, 2, pairs) == Composition(("a", "b", "c"), (), tuple(pairs))
    # Only the best bootstrapped pair is wanted.
    assert compose("abcde", 3, 1, pairs) == Composition(("a", "b", "c"), (), (pairs[0],))
    # One pair falls short: the best kept pair comes again in its place.
    assert compose("abcde", 3, 3, pairs) == Composition(("a", "b", "c"), ("a",), tuple(pairs))
    # Too few pairs can be kept, and each comes as often as the next one.
    assert compose("ab", 3, 2, []) == Composition(("a", "b"), ("a", "b", "a"), ())


def test_what_fills_by_hand():
    best, fresh_d = ("a", "b", "c"), fresh("d")

    def filled(fill, **more):
        return compose("abcdefg", 3, 5, [fresh_d], fill=fill, **more).filled

    assert filled("kept") == ("a", "b", "c", "a")
    # Kept pairs lie at 1/6, 3/6 and 5/6 of the way, the one bootstrapped pair in the middle.
    assert filled("kept_and_bootstrapped") == ("a", "b", fresh_d, "c")
    assert filled("next_best") == ("d", "e", "f", "g")
    doubted = {"b", "e", "f", "g"}
    assert filled("kept", doubted=doubted) == ("a", "c", "a", "c")
    assert filled("kept_and_bootstrapped", doubted=doubted) == ("a", fresh_d, "c", "a")
    assert filled("next_best", doubted=doubted) == ("d", "a", "c", "a")
    # Nothing is left that is not doubted but the bootstrapped pair, or nothing at all.
    assert filled("kept", doubted=best) == (fresh_d,) * 4
    assert compose("abcd", 3, 2, [], doubted="abcd").filled == ("a", "b")
    # Pairs whose answers change places do so again.
    assert compose("abcd", 2, 2, [], "ad").flipped == {"a"}
    assert compose("abcd", 2, 2, [], "ad", fill="next_best").flipped == {"a", "d"}


compositions = st.builds(
    lambda n, k, planned, found: (
        [f"{i:03}" for i in range(n)],
        min(k, n),
        planned,
        [fresh(f"{i:03}") for i in range(min(found, n))],
    ),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 15),
    st.integers(0, 15),
)


@given(compositions)
def test_a_round_has_exactly_the_planned_size(case):
    ids, kept, planned, found = case
    composition = compose(ids, kept, planned, found)
    assert composition.size == kept + planned
    assert composition.kept == tuple(ids[:kept])
    assert composition.bootstrapped == tuple(found[:planned])
    # What is kept comes again, one pair as often as another.
    assert {*composition.filled} <= {*composition.kept}
    times = [composition.filled.count(example_id) for example_id in composition.kept]
    assert max(times) - min(times) <= 1


@relaxed
@given(compositions, st.integers(0, 3), st.booleans())
def test_rows_are_the_composition_in_an_order_of_their_own(case, seed, previous_reference):
    ids, kept, planned, found = case
    composition = compose(ids, kept, planned, found)
    rows = rows_of(composition, seed, 2, previous_reference=previous_reference)
    assert len({row.key for row in rows}) == len(rows) == kept + planned
    offline = [row.example_id for row in rows if row.chosen_ids is None]
    assert sorted(offline) == sorted([*composition.kept, *composition.filled])
    own = [row for row in rows if row.chosen_ids is not None]
    assert sorted(row.example_id for row in own) == sorted(
        p.example_id for p in composition.bootstrapped
    )
    turned = Composition(composition.kept[::-1], composition.filled, composition.bootstrapped[::-1])
    assert rows_of(turned, seed, 2, previous_reference=previous_reference) == rows


def test_rows_by_hand():
    composition = Composition(("a", "b"), ("c", "a", "c"), (fresh("b"),))
    rows = {row.key: row for row in rows_of(composition, 0, 2, previous_reference=False)}
    assert rows == {
        "a/offline": RoundRow("a/offline", "a"),
        "b/offline": RoundRow("b/offline", "b"),
        "c/offline/1": RoundRow("c/offline/1", "c"),
        "a/offline/2": RoundRow("a/offline/2", "a"),
        "c/offline/2": RoundRow("c/offline/2", "c"),
        "b/policy": RoundRow(
            "b/policy", "b", (7, 8, 9), (6,), -5.0, -3.0, False, "policy", "offline_rejected"
        ),
    }


def test_under_a_moved_reference_the_policy_that_sampled_is_the_reference():
    composition = Composition((), (), (fresh("b"),))
    (row,) = rows_of(composition, 0, 2, previous_reference=True)
    assert (row.ref_chosen_logp, row.ref_rejected_logp) == (-3.0, -4.0)


def test_the_order_changes_with_seed_and_round():
    composition = compose([f"{i:03}" for i in range(40)], 40, 0, [])
    orders = {
        tuple(row.key for row in rows_of(composition, seed, number, previous_reference=False))
        for seed in (0, 1)
        for number in (2, 3)
    }
    assert len(orders) == 4


@given(st.integers(0, 20), st.randoms())
def test_a_full_round_holds_every_pair_once_in_the_same_order(count, draw):
    ids = [f"{i:03}" for i in range(count)]
    rows = full_round(ids, 42, 1)
    assert sorted(row.example_id for row in rows) == ids
    assert all(row == RoundRow(f"{row.example_id}/offline", row.example_id) for row in rows)
    assert full_round(draw.sample(ids, count), 42, 1) == rows


@given(st.sets(st.integers(0, 19)), st.randoms())
def test_pairs_that_are_set_aside_are_filled_by_others(numbers, draw):
    ids = [f"{i:03}" for i in range(20)]
    bad = {ids[i] for i in numbers} - {ids[7]}
    rows = full_round(draw.sample(ids, 20), 42, 1, bad)
    assert len({row.key for row in rows}) == len(rows) == 20
    assert {row.example_id for row in rows} == set(ids) - bad
    assert sum(row.filled for row in rows) == len(bad)


PAIRS = Dataset.from_dict(
    {
        "prompt_ids": [[1], [1, 2], [1, 2, 3]],
        "chosen_ids": [[11, 12], [13], [14]],
        "rejected_ids": [[21], [22, 23], [24, 25, 26]],
    }
)
POSITION = {"a": 0, "b": 1, "c": 2}
REFERENCE = PairLogps(("c", "a", "b"), np.array([-3.0, -1.0, -2.0]), np.array([-6.0, -4.0, -5.0]))


def test_round_dataset_by_hand():
    rows = [
        RoundRow("b/offline", "b"),
        RoundRow("a/policy", "a", (7, 8, 9), (6,), -5.5, -3.5),
        RoundRow("b/offline/2", "b"),
    ]
    dataset = RoundDataset(rows, PAIRS, POSITION, REFERENCE)
    offline = {
        "prompt_ids": [1, 2],
        "chosen_ids": [13],
        "rejected_ids": [22, 23],
        "ref_chosen_logps": -2.0,
        "ref_rejected_logps": -5.0,
    }
    assert [dataset[i] for i in range(len(dataset))] == [
        {"sera_id": "b/offline", **offline},
        {
            "sera_id": "a/policy",
            "prompt_ids": [1],
            "chosen_ids": [7, 8, 9],
            "rejected_ids": [6],
            "ref_chosen_logps": -5.5,
            "ref_rejected_logps": -3.5,
        },
        {"sera_id": "b/offline/2", **offline},
    ]


def test_round_dataset_refuses_rows_without_reference():
    with pytest.raises(KeyError, match="1 examples are missing, the first is z"):
        RoundDataset([RoundRow("z/offline", "z")], PAIRS, POSITION, REFERENCE)
