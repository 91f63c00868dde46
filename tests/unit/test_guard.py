"""The guard's signals and decision, worked out by hand and by what must always hold."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sera_plugin.config import GuardConfig
from sera_plugin.review.guard import (
    CONFIDENCE,
    Estimate,
    SampledCompletions,
    Signals,
    decide,
    drift,
    length_slope,
    measure,
    spearman,
)

NOTHING = Estimate(math.nan, math.nan, 0)
QUIET = Signals(
    drift=Estimate(0.1, 0.01, 50),
    spread=Estimate(2.0, 0.1, 50),
    spread_ratio=Estimate(1.2, 0.05, 50),
    length_correlation=Estimate(0.05, 0.02, 50),
    agreement=Estimate(0.9, 0.02, 50),
    accuracy=Estimate(0.7, 0.02, 50),
)
LIMITS = GuardConfig(
    max_drift=0.5,
    max_spread=2.0,
    max_length_correlation=0.25,
    min_agreement=0.75,
    min_accuracy=0.55,
    min_prompts=20,
)


def answers(rewards, tokens, log_ratios=None, times=None):
    return SampledCompletions(
        np.array(rewards, dtype=float),
        np.array(rewards if log_ratios is None else log_ratios, dtype=float),
        np.array(tokens),
        np.array([1] * len(rewards) if times is None else times),
    )


def test_mean_and_standard_error_by_hand():
    found = Estimate.mean([1.0, 2.0, math.nan, 6.0, math.inf])
    # Mean 3; deviations −2, −1, 3; variance 14/2 = 7; error √(7/3).
    assert found == Estimate(3.0, pytest.approx((7 / 3) ** 0.5), 3)
    alone = Estimate.mean([4.0])
    assert (alone.value, alone.count) == (4.0, 1)
    assert math.isnan(alone.error)
    assert math.isnan(Estimate.mean([]).value)


def test_drift_by_hand():
    prompts = [
        # The first answer twice and the second once: 2·3 + 1·(−1) nats on 2·4 + 1·2 tokens.
        answers([0, 0], [4, 2], [3, -1], [2, 1]),
        # 2 + 4 nats on 3 + 7 tokens.
        answers([0, 0], [3, 7], [2, 4]),
    ]
    found = drift(prompts)
    assert found.value == pytest.approx((5 + 6) / (10 + 10))
    # Residuals 5 − 0.55·10 and 6 − 0.55·10: −0.5 and 0.5; √(2/1 · 0.5)/20.
    assert found.error == pytest.approx(1 / 20)
    assert found.count == 2


def test_drift_without_a_token_says_nothing():
    assert drift([]).count == 0
    assert drift([answers([], [])]).count == 0
    assert math.isnan(drift([answers([1.0], [3])]).error)


def test_spread_and_its_ratio_by_hand():
    prompts = [
        answers([0, 2], [1, 2]),  # standard deviation 1
        answers([0, 0, 3, 3], [1, 2, 3, 4]),  # 1.5
        answers([7.0], [4]),  # one answer spreads nowhere
    ]
    first = measure(prompts)
    assert (first.spread.value, first.spread.count) == (1.25, 2)
    assert first.spread_ratio.value == 1
    later = measure(prompts, first_spread=0.5)
    assert later.spread_ratio.value == pytest.approx(2.5)
    assert later.spread_ratio.error == pytest.approx(later.spread.error / 0.5)
    assert measure(prompts, first_spread=0.0).spread_ratio.count == 0


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [5, 3, 1], -1.0),
        # Ranks 1 2 3 4 against 1 3 2 4: 1 − 6·2/(4·15).
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),
        # A tie has ranks 1.5 1.5 3 against 1 2 3: 1.5/√(1.5·2).
        ([1, 1, 3], [1, 2, 3], 1.5 / 3**0.5),
    ],
)
def test_rank_correlation_by_hand(left, right, expected):
    assert spearman(np.array(left), np.array(right)) == pytest.approx(expected)


@pytest.mark.parametrize(("left", "right"), [([1, 1], [1, 2]), ([1, 2], [4, 4]), ([1], [2])])
def test_no_rank_correlation_without_variation(left, right):
    assert math.isnan(spearman(np.array(left), np.array(right)))


def test_length_correlation_leaves_out_prompts_without_two_lengths():
    found = measure([answers([1, 2], [3, 4]), answers([1, 2], [4, 3]), answers([1, 2], [5, 5])])
    assert (found.length_correlation.value, found.length_correlation.count) == (0.0, 2)


def test_slope_and_agreement_by_hand():
    prompts = [
        # Within-prompt products: (−1)(−2) + 1·2 = 4 over (−1)² + 1² = 2.
        answers([0, 4], [1, 3]),
        # (−1)·0 + 1·0 = 0 over 2, and the middle answer adds nothing.
        answers([5, 9, 5], [1, 2, 3]),
    ]
    assert length_slope(prompts) == pytest.approx(1.0)
    found = measure(prompts)
    # Free of length: −1, 1: both stay. 4, 7, 2: the best stays, the worst is one of the worst.
    assert found.agreement.value == 1.0
    steep = [answers([0, 10], [0, 10]), answers([3, 2.5], [0, 1])]
    # Slope (50 − 0.25)/50.5 = 0.985: 0, 0.15 stay; 3, 1.51 stay.
    assert measure(steep).agreement.value == 1.0
    turned = [answers([0, 10], [0, 10]), answers([3, 3.5], [0, 1])]
    # Slope (50 + 0.25)/50.5 = 0.995: the second pair turns round, 3 against 2.505.
    assert measure(turned).agreement.value == 0.5
    assert length_slope([answers([1, 2], [4, 4])]) == 0.0


def test_accuracy_by_hand():
    found = measure([], [2.0, -1.0, 0.0, 3.0, math.nan])
    assert (found.accuracy.value, found.accuracy.count) == (0.625, 4)


def test_answers_without_numbers_are_left_out():
    clean = [answers([1, 2, 4], [3, 5, 4], [1, 2, 4]), answers([0, 1], [2, 4], [3, -1])]
    dirty = [
        answers([1, math.nan, 2, 4], [3, 9, 5, 4], [1, 7, 2, 4]),
        answers([0, 1, 5], [2, 4, 9], [3, -1, math.inf]),
        answers([math.nan, math.nan], [1, 2]),
    ]
    assert repr(measure(dirty, [1.0])) == repr(measure(clean, [1.0]))


numbers = st.floats(-50, 50) | st.sampled_from([math.nan, math.inf, -math.inf])
prompts = st.lists(
    st.lists(
        st.tuples(numbers, st.integers(1, 40), numbers, st.integers(0, 3)),
        max_size=5,
    ).map(lambda rows: answers(*map(list, zip(*rows, strict=True))) if rows else answers([], [])),
    max_size=8,
)
margins = st.lists(numbers, max_size=8)


@settings(deadline=None)
@given(prompts, margins, st.randoms())
def test_the_order_of_prompts_and_pairs_is_nothing(found, held_out, draw):
    there = measure(draw.sample(found, len(found)), draw.sample(held_out, len(held_out)))
    assert repr(measure(found, held_out)) == repr(there)


@settings(deadline=None)
@given(prompts, margins, st.none() | st.floats(0, 10))
def test_signals_stay_within_their_bounds_and_the_share_too(found, held_out, first):
    signals = measure(found, held_out, first)
    for name, low, high in [
        ("spread", 0, math.inf),
        ("spread_ratio", 0, math.inf),
        ("length_correlation", -1 - 1e-9, 1 + 1e-9),
        ("agreement", 0, 1),
        ("accuracy", 0, 1),
    ]:
        value = getattr(signals, name).value
        assert math.isnan(value) or low <= value <= high, name
    decision = decide(signals, GuardConfig(min_prompts=2))
    assert 0 <= decision.share <= 1
    assert 0 <= decision.limit(7) <= 7
    assert decision.sentence(7).endswith(".")


def test_nothing_past_its_limit_lets_all_in():
    decision = decide(QUIET, LIMITS)
    assert decision.share == 1
    assert decision.sentence(30) == (
        "all 30 planned bootstrapped pairs may enter: no signal is past its limit."
    )


# The nearer end of the interval decides: value ∓ 1.645·error.
STEP = CONFIDENCE * 0.1


@pytest.mark.parametrize(
    ("signal", "value", "share"),
    [
        ("drift", 0.5 + STEP, 1.0),
        ("drift", 0.75 + STEP, 0.5),
        ("drift", 1.0 + STEP, 0.0),
        ("drift", 9.0, 0.0),
        ("drift", -9.0, 1.0),
        ("spread_ratio", 2.5 + STEP, 0.75),
        ("length_correlation", 0.3 + STEP, 0.8),
        ("length_correlation", -0.3 - STEP, 0.8),
        # Disagreement 0.3 where 0.25 is allowed and 0.5 is the end.
        ("agreement", 0.7 - STEP, 0.8),
        ("agreement", 0.5 - STEP, 0.0),
        ("accuracy", 0.55 - STEP + 1e-9, 1.0),
        ("accuracy", 0.55 - STEP - 1e-9, 0.0),
        ("spread", 1e9, 1.0),  # has no limit of its own
    ],
)
def test_share_by_hand(signal, value, share):
    signals = dataclasses.replace(QUIET, **{signal: Estimate(value, 0.1, 50)})
    decision = decide(signals, LIMITS)
    assert decision.share == pytest.approx(share)
    if share < 1 - 1e-6:
        assert "sera.bootstrap.guard." in decision.why


def test_the_smallest_share_counts_and_all_reasons_are_given():
    signals = dataclasses.replace(
        QUIET, drift=Estimate(0.75, 0.0, 50), spread_ratio=Estimate(2.5, 0.0, 50)
    )
    decision = decide(signals, LIMITS)
    assert decision.share == pytest.approx(0.5)
    assert decision.sentence(31) == (
        "at most 16 of 31 planned bootstrapped pairs may enter: the log-ratio of the policy's "
        "answers is 0.75 ± 0 nats per token, above sera.bootstrap.guard.max_drift: 0.5; the "
        "reward's spread is 2.5 ± 0 times the first review's, above "
        "sera.bootstrap.guard.max_spread: 2."
    )


@pytest.mark.parametrize("count", [0, 1, 19])
def test_few_samples_decide_nothing(count):
    bad = Estimate(99.0, 0.0, count)
    signals = Signals(bad, bad, bad, bad, dataclasses.replace(bad, value=0.0), NOTHING)
    decision = decide(signals, LIMITS)
    assert decision.share == 1
    assert decision.why == "no signal has 20 prompts behind it"


def test_switched_off_the_guard_lets_all_in():
    signals = dataclasses.replace(QUIET, drift=Estimate(9.0, 0.0, 50))
    decision = decide(signals, GuardConfig(enabled=False))
    assert (decision.share, decision.why) == (1.0, "the guard is off")
    assert decision.signals is signals


def test_limits_that_leave_a_signal_out():
    worst = Signals(
        NOTHING,
        NOTHING,
        NOTHING,
        Estimate(-1.0, 0.0, 99),
        Estimate(0.0, 0.0, 99),
        Estimate(0.0, 0.0, 99),
    )
    limits = GuardConfig(max_length_correlation=1, min_agreement=0, min_accuracy=0)
    assert decide(worst, limits).share == 1
