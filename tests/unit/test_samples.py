"""Who wrote the sampled answers, and their statistics, worked out by hand."""

import numpy as np
import pytest

from sera_plugin.data.candidates import Candidate, Completion, Source
from sera_plugin.review.pairing import SampleStats, by_answer, for_the_guard

LONG, CUT, EMPTY = Completion((1, 2, 3, 4), True), Completion((5, 6), False), Completion((9,), True)
OWN = {"a": (LONG, CUT, LONG, EMPTY), "b": (CUT, CUT)}
OTHER = {"a": (CUT, Completion((8,), False)), "b": (LONG,)}
ONE, TWO = Source.POLICY, Source.REFERENCE


def scored(rollout, writer, ratio):
    return Candidate(rollout.token_ids, writer, rollout.finished, ratio, ratio - 7.0, -7.0)


FRESH = {
    "a": [scored(LONG, ONE, 2.0), scored(CUT, ONE, -1.0), scored(OTHER["a"][1], TWO, -3.0)],
    "b": [scored(CUT, ONE, -1.0), scored(LONG, TWO, 0.5)],
}


def test_statistics_count_repeats_and_empty_answers():
    # An empty answer is the ending alone; it is sampled but not scored.
    assert SampleStats.of({ONE: OWN}, FRESH) == SampleStats(
        answers=6,
        unique=pytest.approx(4 / 6),  # three of "a", one of "b"
        finished=pytest.approx(3 / 6),
        kl=pytest.approx((2 - 1 + 2 - 1 - 1) / 5),
    )
    assert SampleStats.of({ONE: {}}, {}) is None


def test_the_divergence_is_the_policys_own():
    mixed = SampleStats.of({ONE: OWN, TWO: OTHER}, FRESH)
    assert mixed.answers == 9
    assert mixed.unique == pytest.approx(6 / 9)  # the reference adds (8,) to "a" and LONG to "b"
    assert mixed.kl == SampleStats.of({ONE: OWN}, FRESH).kl
    assert SampleStats.of({TWO: OTHER}, FRESH).kl is None


@pytest.mark.parametrize("written", [{ONE: OWN, TWO: OTHER}, {TWO: OTHER, ONE: OWN}])
def test_what_both_wrote_is_the_policys(written):
    assert by_answer(written, "a") == {
        LONG: ONE,
        CUT: ONE,
        EMPTY: ONE,
        OTHER["a"][1]: TWO,
    }
    assert by_answer({TWO: OTHER}, "a") == {CUT: TWO, OTHER["a"][1]: TWO}


def test_the_guard_gets_the_policys_answers():
    written = {ONE: OWN, TWO: OTHER}
    first, second = for_the_guard(written, FRESH, beta=0.5, penalty=0.25)
    np.testing.assert_array_equal(first.rewards, [1 - 1, -0.5 - 0.5])
    np.testing.assert_array_equal(first.log_ratios, [2, -1])
    np.testing.assert_array_equal(first.tokens, [4, 2])
    np.testing.assert_array_equal(first.times, [2, 1])
    np.testing.assert_array_equal(second.times, [2])
    assert for_the_guard({TWO: OTHER}, FRESH, beta=0.5, penalty=0.25) == []
