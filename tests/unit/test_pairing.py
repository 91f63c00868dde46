"""Best against worst, the length penalty and its automatic choice, by hand and as properties."""

from dataclasses import replace
from itertools import pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sera_plugin.data.candidates import BootstrappedPair, Candidate, Pool, Source
from sera_plugin.review.pairing import (
    Rejection,
    Shortfall,
    balanced_penalty,
    best_against_worst,
    bootstrap,
    distinct,
    keep_top,
)

relaxed = settings(deadline=None)


def answer(tokens, log_ratio, source=Source.POLICY, finished=True):
    return Candidate(tuple(tokens), source, finished, log_ratio, log_ratio - 20.0, -20.0)


def pool_of(*candidates, example_id="x"):
    return Pool(example_id, candidates)


LONG = answer([1, 2, 3, 4, 5], 10.0)
MIDDLE = answer([6, 7, 8], 6.0, Source.CHOSEN)
SHORT = answer([9], 4.0, Source.REJECTED)
POOL = pool_of(MIDDLE, LONG, SHORT)

# Quarters keep every difference of rewards exact.
candidates = st.builds(
    answer,
    st.lists(st.integers(1, 3), min_size=1, max_size=6),
    st.integers(-20, 20).map(lambda quarter: quarter / 4),
    st.sampled_from(Source),
    st.booleans(),
)
pools = st.lists(candidates, max_size=5).map(lambda found: pool_of(*found))


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (0.0, (1.0, 0.6, 0.4)),
        (0.1, (0.5, 0.3, 0.3)),
        (0.2, (0.0, 0.0, 0.2)),
        (-0.1, (1.5, 0.9, 0.5)),
    ],
)
def test_rewards_by_hand(penalty, expected):
    found = [c.reward(beta=0.1, penalty=penalty) for c in (LONG, MIDDLE, SHORT)]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("penalty", "chosen", "rejected", "margin"),
    [
        (0.0, LONG, SHORT, 0.6),  # 1.0 − 0.4
        (0.12, LONG, MIDDLE, 0.16),  # 0.4 − 0.24, short has 0.28
        (0.25, SHORT, LONG, 0.4),  # 0.15 − (−0.25), middle has −0.15
    ],
)
def test_pairs_by_hand(penalty, chosen, rejected, margin):
    pair = best_against_worst(POOL, beta=0.1, penalty=penalty)
    assert (pair.chosen, pair.rejected) == (chosen, rejected)
    assert pair.margin == pytest.approx(margin, abs=1e-12)
    assert (pair.example_id, pair.pool) == ("x", POOL)


def test_an_answer_that_was_cut_is_never_chosen_but_may_be_rejected():
    cut = replace(LONG, finished=False)
    assert best_against_worst(pool_of(cut, MIDDLE, SHORT), 0.1, 0.0) is Shortfall.NOT_NEW
    own = answer([9, 9], 5.0)
    pair = best_against_worst(pool_of(cut, own, SHORT), 0.1, 0.0)
    assert (pair.chosen, pair.rejected) == (own, SHORT)
    pair = best_against_worst(pool_of(replace(cut, log_ratio=-1.0), own, SHORT), 0.1, 0.0)
    assert (pair.chosen, pair.rejected.finished) == (own, False)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], Shortfall.DUPLICATES),
        ([LONG], Shortfall.DUPLICATES),
        ([LONG, replace(LONG, source=Source.CHOSEN)], Shortfall.DUPLICATES),
        ([replace(LONG, finished=False), replace(SHORT, finished=False)], Shortfall.TRUNCATED),
        # The only finished answer is also the worst one.
        ([replace(LONG, finished=False), SHORT], Shortfall.TRUNCATED),
        ([LONG, replace(SHORT, log_ratio=10.0)], Shortfall.EQUAL_REWARDS),
        ([MIDDLE, SHORT], Shortfall.NOT_NEW),
        ([MIDDLE, SHORT, answer([1, 1], 5.0)], Shortfall.NOT_NEW),
    ],
)
def test_why_a_pool_gives_no_pair(found, expected):
    assert best_against_worst(pool_of(*found), 0.1, 0.0) is expected


def test_equal_rewards_break_by_token_ids():
    low, high, worst = answer([1, 9], 3.0), answer([2, 0], 3.0), answer([3, 0], 1.0)
    assert best_against_worst(pool_of(high, worst, low), 0.1, 0.0).chosen == low


def test_an_offline_answer_stands_for_its_sampled_copy():
    own, offline = answer([1, 2], 3.0), answer([1, 2], 2.0, Source.CHOSEN)
    assert distinct([own, offline, own]) == (offline,)


def test_the_answer_that_is_rejected_by_hand():
    best, worst = answer([1], 9.0), answer([9, 9], -9.0)
    own = [answer([2, n], float(n)) for n in range(6)]
    base = [answer([3, n], n - 5.5, Source.REFERENCE) for n in range(3)]
    pool = pool_of(worst, *own, *base, best)
    assert best_against_worst(pool, 0.1, 0.0).rejected == worst
    by_reference = Rejection("reference", 7, 2)
    pair = best_against_worst(pool, 0.1, 0.0, by_reference)
    assert (pair.chosen, pair.rejected) == (best, base[0])
    assert pair.margin == pytest.approx(0.1 * (9 + 5.5))
    for few in (pool_of(best, *own), pool_of(*own, answer([4], 10.0, Source.REFERENCE))):
        assert best_against_worst(few, 0.1, 0.0, by_reference) is Shortfall.NO_REFERENCE


def test_the_worst_of_five_that_are_drawn():
    """Of 10 answers by rank, rank r is the worst of 5 drawn with C(r−1, 4) / C(10, 5)."""
    ranked = [answer([n], -float(n)) for n in range(10)]
    found = [
        best_against_worst(
            pool_of(*ranked[::-1], example_id=f"{n}"), 1.0, 0.0, Rejection("worst_of", 7, 2)
        ).rejected.token_ids[0]
        for n in range(2000)
    ]
    assert min(found) >= 4
    for rank in range(4, 10):
        share = comb(rank, 4) / comb(10, 5)
        assert found.count(rank) / 2000 == pytest.approx(share, abs=4 * (share / 2000) ** 0.5)
    pool = pool_of(*ranked)
    assert {
        best_against_worst(pool, 1.0, 0.0, Rejection("worst_of", 7, n)).rejected.token_ids
        for n in range(20)
    } > {(9,), (8,)}
    few = pool_of(*ranked[:5])
    assert best_against_worst(few, 1.0, 0.0, Rejection("worst_of", 7, 2)).rejected == ranked[4]


@given(pools, st.sampled_from(["worst", "worst_of", "reference"]), st.randoms())
def test_who_is_rejected_does_not_depend_on_the_order_of_candidates(pool, rule, draw):
    rejection, each = Rejection(rule, 3, 2), list(distinct(pool.candidates))
    here = best_against_worst(pool_of(*each), 0.5, 0.25, rejection)
    there = best_against_worst(pool_of(*draw.sample(each, len(each))), 0.5, 0.25, rejection)
    if isinstance(here, Shortfall):
        assert there is here
        return
    assert (here.chosen, here.rejected) == (there.chosen, there.rejected)
    assert here.margin > 0
    assert rule != "reference" or here.rejected.source is Source.REFERENCE


def test_the_penalty_balances_the_pairs_that_are_made():
    rejection = Rejection("reference")
    long, short = answer([1] * 8, 9.0), answer([2] * 2, 8.0)
    base = [answer([3] * 5, 1.0, Source.REFERENCE), answer([4] * 2, 0.0, Source.REFERENCE)]
    alpha = balanced_penalty([pool_of(long, short, *base)], 1.0, rejection)
    assert alpha == pytest.approx(1 / 6, rel=1e-6)
    assert balanced_penalty([pool_of(long, short)], 1.0, rejection) == 0.0


@given(pools)
def test_distinct_keeps_every_answer_once(pool):
    kept = distinct(pool.candidates)
    assert len({c.token_ids for c in kept}) == len(kept)
    assert {c.token_ids for c in kept} == {c.token_ids for c in pool.candidates}
    assert distinct(kept) == kept


@given(pools, st.sampled_from([0.0, 0.25, -0.5, 2.0]))
def test_a_pair_is_what_it_promises(pool, penalty):
    found = best_against_worst(pool, 0.5, penalty)
    if isinstance(found, Shortfall):
        return
    rewards = [c.reward(0.5, penalty) for c in distinct(pool.candidates)]
    finished = [c.reward(0.5, penalty) for c in distinct(pool.candidates) if c.finished]
    assert found.chosen.finished
    assert found.chosen.reward(0.5, penalty) == max(finished)
    assert found.rejected.reward(0.5, penalty) == min(rewards)
    assert found.margin == max(finished) - min(rewards) > 0
    assert found.chosen.token_ids != found.rejected.token_ids
    assert found.chosen.source.sampled or found.rejected.source.sampled


@given(st.lists(candidates, max_size=6, unique_by=lambda c: c.token_ids), st.randoms())
def test_a_pair_does_not_depend_on_the_order_of_candidates(found, draw):
    here = best_against_worst(pool_of(*found), 0.5, 0.25)
    there = best_against_worst(pool_of(*draw.sample(found, len(found))), 0.5, 0.25)
    if isinstance(here, BootstrappedPair):
        here, there = replace(here, pool=POOL), replace(there, pool=POOL)
    assert here == there


@given(st.lists(pools, max_size=8))
def test_bootstrap_accounts_for_every_pool(many):
    pairs, short = bootstrap(many, 0.5, 0.0)
    assert len(pairs) + sum(short.values()) == len(many)
    assert set(short) == set(Shortfall)


def test_bootstrap_counts_reasons():
    pairs, short = bootstrap([POOL, pool_of(LONG), pool_of(MIDDLE, SHORT), pool_of()], 0.1, 0.0)
    assert [pair.pool for pair in pairs] == [POOL]
    assert short == {
        Shortfall.DUPLICATES: 2,
        Shortfall.EQUAL_REWARDS: 0,
        Shortfall.TRUNCATED: 0,
        Shortfall.NOT_NEW: 1,
        Shortfall.DISAGREE: 0,
        Shortfall.UNJUDGED: 0,
        Shortfall.NO_REFERENCE: 0,
    }


def fresh(example_id, margin):
    return BootstrappedPair(example_id, LONG, SHORT, margin, POOL)


def test_keep_top_by_hand():
    pairs = [fresh("c", 0.5), fresh("b", 0.9), fresh("a", 0.5), fresh("d", 0.1)]
    assert [pair.example_id for pair in keep_top(pairs, 2)] == ["b", "a"]
    assert [pair.example_id for pair in keep_top(pairs, 9)] == ["b", "a", "c", "d"]
    assert keep_top(pairs, 0) == []


@given(
    st.dictionaries(st.text("abcd", min_size=1), st.sampled_from([0.25, 0.5, 1.0]), max_size=10),
    st.integers(0, 12),
    st.randoms(),
)
def test_keep_top_does_not_depend_on_the_order(margins, count, draw):
    pairs = [fresh(*item) for item in margins.items()]
    kept = keep_top(pairs, count)
    assert len(kept) == min(count, len(pairs))
    assert keep_top(draw.sample(pairs, len(pairs)), count) == kept


def gap(many, beta, penalty):
    """Mean of |best| − |worst| over the pools, an independent count."""
    total = 0
    for pool in many:
        by_rank = sorted(distinct(pool.candidates), key=lambda c: c.token_ids)
        rewards = [beta * c.log_ratio - penalty * len(c.token_ids) for c in by_rank]
        may_win = [i for i, c in enumerate(by_rank) if c.finished] or range(len(by_rank))
        best = max(may_win, key=lambda i: (rewards[i], -i))
        worst = min(range(len(by_rank)), key=lambda i: (rewards[i], -i))
        total += len(by_rank[best].token_ids) - len(by_rank[worst].token_ids)
    return total / len(many)


def test_auto_penalty_by_hand():
    # Two prompts, each a long and a short answer, β = 1. The long one of the first wins by 4 over
    # 4 tokens (until α = 1), that of the second by 6 over 2 tokens (until α = 3). Below 1 the mean
    # gap is (4 + 2)/2 = 3, from 1 to 3 it is (−4 + 2)/2 = −1, above 3 it is −3: −1 is nearest.
    many = [
        pool_of(answer([1] * 6, 4.0), answer([2] * 2, 0.0), example_id="a"),
        pool_of(answer([1] * 5, 6.0), answer([2] * 3, 0.0), example_id="b"),
    ]
    alpha = balanced_penalty(many, 1.0)
    assert alpha == pytest.approx(1.0)
    assert gap(many, 1.0, alpha) == -1.0


def test_auto_penalty_is_negative_when_short_answers_win():
    # The short answer wins by 2 over 3 tokens, so α = −2/3 is the turning point; the second prompt
    # has the long one winning by 1 over 3. Between −2/3 and 1/3 the gaps cancel: α = 0 is balanced.
    first = pool_of(answer([1] * 2, 2.0), answer([2] * 5, 0.0), example_id="a")
    second = pool_of(answer([1] * 5, 1.0), answer([2] * 2, 0.0), example_id="b")
    assert balanced_penalty([first, second], 1.0) == 0.0
    # Three tokens too short on average for α above −2/3, three too long below: either side will do.
    assert balanced_penalty([first], 1.0) == pytest.approx(-2 / 3)


@pytest.mark.parametrize(
    "many",
    [
        [],
        [pool_of()],
        [pool_of(LONG)],
        [pool_of(answer([1], 1.0), answer([2, 2], 1.0))],
        [pool_of(answer([1, 1], 1.0), answer([2, 2], 3.0))],
    ],
)
def test_auto_penalty_without_anything_to_balance(many):
    assert balanced_penalty(many, 0.1) == 0.0


def test_a_prompt_without_candidates_does_not_matter():
    with_empty = [POOL, pool_of(example_id="y")]
    assert balanced_penalty(with_empty, 0.1) == balanced_penalty([POOL], 0.1)


@relaxed
@given(st.lists(st.lists(candidates, min_size=1, max_size=4), min_size=1, max_size=6))
def test_auto_penalty_balances_up_to_the_step(many):
    many = [pool_of(*found) for found in many]
    alpha = balanced_penalty(many, 1.0)
    competing = [distinct(pool.candidates) for pool in many]
    best = [max(c.log_ratio for c in [c for c in p if c.finished] or p) for p in competing]
    worst = [min(c.log_ratio for c in p) for p in competing]
    most = max(np.subtract(best, worst))
    if most == 0:  # all rewards are equal: no α makes a pair
        assert alpha == 0.0
        return
    # Rewards change places at α = Δ(log-ratio) / Δ(length) alone, so between these turning points
    # the gap is constant: one α inside each interval stands for all. Beyond the largest difference
    # of rewards the length alone decides.
    turns = {
        (a.log_ratio - b.log_ratio) / (len(a.token_ids) - len(b.token_ids))
        for pool in competing
        for a in pool
        for b in pool
        if len(a.token_ids) != len(b.token_ids)
    }
    ends = [-most, *sorted(turn for turn in turns if abs(turn) < most), most]
    gaps = [gap(many, 1.0, (low + high) / 2) for low, high in pairwise(ends)]
    assert (np.diff(gaps) <= 1e-12).all()
    assert abs(gap(many, 1.0, alpha)) <= min(map(abs, gaps)) + 1e-12


@relaxed
@given(st.lists(pools.filter(lambda p: p.candidates), min_size=1, max_size=4), st.randoms())
def test_auto_penalty_does_not_depend_on_the_order_of_pools(many, draw):
    assert balanced_penalty(draw.sample(many, len(many)), 0.5) == balanced_penalty(many, 0.5)
