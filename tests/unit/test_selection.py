"""The ranking of pairs, by hand and as properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sera_plugin.data.margins import check_numbers, overlap, rank, set_aside
from sera_plugin.runtime.errors import BadNumbersError

# Few different values, so that ties are common.
tables = st.dictionaries(
    st.text("abc012", min_size=1, max_size=4),
    st.sampled_from([-1.5, -0.0, 0.0, 2.0, 7.25]),
    max_size=15,
).map(lambda table: (list(table), np.array(list(table.values()), dtype=np.float64)))


def test_rank_by_hand():
    ids = ["d", "a", "c", "b", "e"]
    assert rank(ids, np.array([0.5, 2.0, 0.5, -1.0, 2.0])).tolist() == [1, 4, 2, 0, 3]


@given(tables, st.data())
def test_no_one_outside_the_top_is_better(table, data):
    ids, margins = table
    count = data.draw(st.integers(0, len(ids)))
    order = [(-margins[row], ids[row]) for row in rank(ids, margins)]
    assert sorted(order) == sorted((-m, i) for i, m in zip(ids, margins, strict=True))
    inside, outside = order[:count], order[count:]
    assert not inside or not outside or max(inside) < min(outside)


@given(tables, st.randoms())
def test_the_ranking_does_not_depend_on_the_order(table, draw):
    ids, margins = table
    order = draw.sample(range(len(ids)), len(ids))
    again = rank([ids[i] for i in order], margins[np.array(order, dtype=int)])
    assert [ids[i] for i in rank(ids, margins)] == [ids[order[i]] for i in again]


@given(tables, st.floats(0.5, 4), st.floats(-10, 10))
def test_scaling_and_shifting_margins_changes_nothing(table, scale, shift):
    ids, margins = table
    np.testing.assert_array_equal(rank(ids, scale * margins + shift), rank(ids, margins))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_margin_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match=r"the margin of example b is .*, not a finite number"):
        rank(["a", "b"], np.array([0.0, bad]))


def test_numbers_that_are_not_finite_are_set_aside_behind_all_others():
    margins = set_aside(np.array([np.nan, -9.0, np.inf, 3.0, -np.inf]))
    np.testing.assert_array_equal(margins, [-np.inf, -9.0, -np.inf, 3.0, -np.inf])
    assert list(rank(["e", "d", "c", "b", "a"], margins)) == [3, 1, 4, 2, 0]


def test_too_many_bad_numbers_stop_the_run():
    margins = np.array([1.0, np.nan, 2.0, np.inf])
    assert check_numbers(np.isfinite(margins), 0.5, "round 2") == 2
    with pytest.raises(
        BadNumbersError,
        match=r"^round 2: 2 of 4 pairs .* sera\.max_set_aside: 0\.49 allows; .*precision\.$",
    ):
        check_numbers(np.isfinite(margins), 0.49, "round 2")


def test_overlap_by_hand():
    kept = np.array([True, True, True, True, False])
    previous = np.array([True, False, True, True, True])
    assert overlap(kept, previous) == 0.75
    assert overlap(kept, kept) == 1.0
    assert overlap(kept, ~kept) == 0.0
    assert overlap(np.zeros(5, dtype=bool), previous) == 0.0
