"""Log-ratios, margins and the ensemble, by hand and as properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sera_plugin.data.margins import PairLogps, ensemble, log_ratios, margins

floats = st.floats(-1e6, 1e6)
POLICY = PairLogps(("a", "b", "c"), np.array([-10.0, -4.0, -7.0]), np.array([-12.0, -6.0, -5.0]))
# The reference holds more pairs than the policy, in another order.
REFERENCE = PairLogps(
    ("c", "x", "a", "b"), np.array([-8.0, 0.0, -14.0, -4.5]), np.array([-9.0, 0.0, -10.0, -8.5])
)


def test_log_ratios_by_hand():
    ratios = log_ratios(POLICY, REFERENCE)
    assert ratios.ids == ("a", "b", "c")
    np.testing.assert_array_equal(ratios.chosen, [4.0, 0.5, 1.0])
    np.testing.assert_array_equal(ratios.rejected, [-2.0, 2.5, 4.0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sum", [6.0, -2.0, -3.0]),
        # 4/4 − (−2)/2, 0.5/1 − 2.5/5, 1/2 − 4/(1 in the place of 0)
        ("mean", [2.0, 0.0, -3.5]),
    ],
)
def test_margins_by_hand(kind, expected):
    found = margins(log_ratios(POLICY, REFERENCE), np.array([4, 1, 2]), np.array([2, 5, 0]), kind)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float64


def test_unknown_kind_of_margin():
    with pytest.raises(ValueError, match="unknown kind of margin 'median'; allowed are sum and"):
        margins(POLICY, np.ones(3), np.ones(3), "median")


def test_ensemble_by_hand():
    now, before = np.array([1.0, -2.0, 4.0]), np.array([3.0, 2.0, -6.0])
    np.testing.assert_allclose(ensemble(now, before, 0.3), [1.6, -0.8, 1.0], rtol=1e-15)
    np.testing.assert_array_equal(ensemble(now, None, 0.3), now)


def test_ensemble_without_history_is_a_copy():
    now = np.array([1.0, 2.0])
    ensemble(now, None, 0.3)[0] = 5.0
    assert now[0] == 1.0


@given(st.floats(0, 1), st.data())
def test_ensemble_lies_between_and_gives_back_the_ends(weight, data):
    shape = data.draw(st.integers(0, 20))
    now, before = (data.draw(arrays(np.float64, shape, elements=floats)) for _ in range(2))
    mixed = ensemble(now, before, weight)
    slack = 1e-9 * np.maximum(np.abs(now), np.abs(before)) + 1e-9
    assert (mixed >= np.minimum(now, before) - slack).all()
    assert (mixed <= np.maximum(now, before) + slack).all()
    np.testing.assert_array_equal(ensemble(now, before, 0.0), now)
    np.testing.assert_array_equal(ensemble(now, before, 1.0), before)


@given(st.lists(st.tuples(floats, floats), max_size=12), st.randoms())
def test_margins_do_not_depend_on_the_order_of_either_model(rows, draw):
    ids = tuple(f"{i:03}" for i in range(len(rows)))
    policy = PairLogps(ids, *np.array(rows, dtype=np.float64).reshape(-1, 2).T)
    reference = PairLogps(ids, policy.chosen / 2, policy.rejected / 3)
    shuffled = draw.sample(ids, len(ids))
    tokens = np.ones(len(ids))
    here = margins(log_ratios(policy, reference), tokens, tokens)
    there = margins(log_ratios(policy.aligned(shuffled), reference), tokens, tokens)
    assert dict(zip(ids, here, strict=True)) == dict(zip(shuffled, there, strict=True))


def test_swapping_the_sides_negates_the_margin():
    ratios = log_ratios(POLICY, REFERENCE)
    swapped = PairLogps(ratios.ids, ratios.rejected, ratios.chosen)
    chosen, rejected = np.array([4, 1, 2]), np.array([2, 5, 3])
    for kind in ("sum", "mean"):
        here = margins(ratios, chosen, rejected, kind)
        np.testing.assert_array_equal(margins(swapped, rejected, chosen, kind), -here)


def test_aligned_names_what_is_missing():
    with pytest.raises(KeyError, match="2 examples are missing, the first is y"):
        POLICY.aligned(["a", "y", "z"])


def test_lengths_must_match():
    with pytest.raises(ValueError, match="2 ids, 3 chosen and 3 rejected log-probs don't match"):
        PairLogps(("a", "b"), np.zeros(3), np.zeros(3))
