"""The warning of labels known by heart."""

from __future__ import annotations

import numpy as np
import pytest

from sera_plugin.data.margins import PairLogps
from sera_plugin.review.memory import memory_text


def ratios(right: int, wrong: int, bad: int = 0) -> PairLogps:
    """Log-ratios of so many pairs ordered as labelled, the other way, and without a number."""
    chosen = np.array([1.0] * right + [-1.0] * wrong + [np.nan] * bad)
    count = len(chosen)
    return PairLogps(tuple(f"{n}" for n in range(count)), chosen, np.zeros(count))


@pytest.mark.parametrize(
    ("right", "held"),
    [(60, [(55, 45)]), (97, [(8, 2)]), (97, [(90, 10)]), (97, [(1, 1)]), (40, [(90, 10)])],
)
def test_silent_where_the_gap_is_small_or_may_be_chance(
    right: int, held: list[tuple[int, int]]
) -> None:
    assert memory_text(ratios(right, 100 - right), [ratios(*pair) for pair in held]) is None


def test_says_both_shares_and_the_number_held_out() -> None:
    said = memory_text(ratios(97, 3, bad=5), [ratios(25, 25, bad=9), ratios(28, 22)])
    assert said is not None
    assert said.startswith("97.0% of the offline pairs")
    assert "53.0% of 100 evaluation pairs" in said
    assert "learning_rate" in said


def test_more_held_out_pairs_make_the_same_gap_known() -> None:
    assert memory_text(ratios(90, 10), [ratios(6, 4)]) is None
    assert memory_text(ratios(900, 100), [ratios(600, 400)]) is not None


@pytest.mark.parametrize("held", [[], [ratios(0, 0)], [ratios(0, 0, bad=3)]])
def test_without_held_out_pairs_nearly_all_is_worth_a_word(held: list[PairLogps]) -> None:
    assert memory_text(ratios(94, 6), held) is None
    said = memory_text(ratios(97, 3), held)
    assert said is not None
    assert "test_datasets" in said
    assert memory_text(ratios(0, 0, bad=4), held) is None
