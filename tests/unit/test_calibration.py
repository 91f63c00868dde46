"""The calibration of scores: formulas by hand, labels that were simulated."""

from __future__ import annotations

import numpy as np
import pytest

from sera_plugin.review.calibration import Calibration, weights


def simulated(
    count: int, slope: float, error: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of labels in a unit of their own, and which labels are right."""
    draw = np.random.default_rng(seed)
    size = np.abs(draw.normal(size=count))
    size /= np.sqrt(np.mean(size**2))
    right = draw.random(count) >= error
    agrees = draw.random(count) < 1 / (1 + np.exp(-slope * size))
    return 7 * np.where(agrees == right, size, -size), right


def test_posterior_by_hand() -> None:
    calibration = Calibration(scale=2.0, slope=1.5, error=0.2)
    p = 1 / (1 + np.exp(-1.5 * 3.0 / 2.0))
    found = calibration.posterior(np.array([3.0, -3.0, 0.0, np.nan, -np.inf]))
    assert found[:3] == pytest.approx(
        [0.8 * p / (0.8 * p + 0.2 * (1 - p)), 0.8 * (1 - p) / (0.8 * (1 - p) + 0.2 * p), 0.8]
    )
    assert np.isnan(found[3:]).all()
    assert Calibration(1.0, 1.2, 0.0).posterior(np.array([-9.0])) == 1, "no label is wrong"


def test_weights_by_hand() -> None:
    found = weights(np.array([0.9, 0.7, 0.3, np.nan]))
    assert found == pytest.approx([0.8 * 2.5, 0.4 * 2.5, 0.0, 1.0])
    assert found[:3].mean() == pytest.approx(1)
    assert weights(np.array([0.1, 0.5])).tolist() == [1, 1]
    assert weights(np.array([np.nan, np.nan])).tolist() == [1, 1]


@pytest.mark.parametrize(("slope", "error"), [(1.2, 0.0), (1.2, 0.2), (1.2, 0.4), (1.8, 0.0)])
def test_simulated_labels_are_found_out(slope: float, error: float) -> None:
    scores, right = simulated(20000, slope, error)
    found = Calibration.fit(scores)
    assert found is not None
    assert found.scale == pytest.approx(7, rel=1e-6)
    assert found.error == pytest.approx(error, abs=0.06)
    assert found.slope == pytest.approx(slope, rel=0.3)
    posterior = found.posterior(scores)
    for part in np.array_split(np.argsort(posterior), 4):
        assert right[part].mean() == pytest.approx(posterior[part].mean(), abs=0.08)


@pytest.mark.parametrize(("slope", "error"), [(0.4, 0.0), (0.4, 0.3), (2.5, 0.0), (2.5, 0.3)])
def test_trusted_labels_say_how_strong_a_signal_is(slope: float, error: float) -> None:
    """Where the prior alone takes a weak signal for a good one on wrong labels."""
    scores, right = simulated(6000, slope, error)
    trusted = np.zeros(6000, dtype=bool)
    trusted[np.flatnonzero(right)[:2000]] = True
    found = Calibration.fit(scores, trusted)
    assert found is not None
    assert found.slope == pytest.approx(slope, rel=0.15, abs=0.12)
    truth = 1 - right[~trusted].mean()
    share = found.error_share(scores, trusted)
    assert share.pairs == 4000
    assert share.low - 0.01 < truth < share.high + 0.01
    assert share.value == pytest.approx(truth, abs=0.12)
    alone = Calibration.fit(scores)
    assert alone is not None
    if (slope, error) == (0.4, 0.0):
        assert alone.error_share(scores).low > 0.15
        assert share.value < 0.12


def test_what_a_signal_knows_by_hand() -> None:
    """Σ log p / ½ of trusted labels, Σ log (ε + (1 − 2ε)·p) / ½ of the others."""
    calibration = Calibration(scale=2.0, slope=1.5, error=0.2)
    scores, trusted = np.array([2.0, -4.0, np.nan]), np.array([True, False, True])
    p = 1 / (1 + np.exp(-1.5)), 1 / (1 + np.exp(3.0))
    expected = np.log(2 * p[0]) + np.log(2 * (0.2 + 0.6 * p[1]))
    assert calibration.knows(scores, trusted) == pytest.approx(expected)


def test_clean_labels_all_count() -> None:
    """The gate: with few wrong labels to be found, weights are near 1."""
    scores, _ = simulated(4000, 1.6, 0.0)
    found = Calibration.fit(scores)
    assert found is not None
    assert np.quantile(weights(found.posterior(scores)), 0.02) > 0.5


@pytest.mark.parametrize("seed", range(6))
def test_a_few_hundred_pairs_are_enough(seed: int) -> None:
    scores, right = simulated(400, 1.2, 0.4, seed)
    found = Calibration.fit(scores)
    assert found is not None
    assert 0.25 < found.error < 0.5
    counts = weights(found.posterior(scores))
    assert (counts * right).sum() / counts.sum() > right.mean() + 0.05


def test_scores_that_say_nothing() -> None:
    assert Calibration.fit(np.zeros(9)) is None
    assert Calibration.fit(np.array([np.nan, np.inf])) is None
    assert Calibration.fit(np.array([])) is None


def test_what_is_no_number_is_left_out() -> None:
    scores, _ = simulated(300, 1.2, 0.3)
    assert Calibration.fit(scores) == Calibration.fit(np.append(scores, [np.nan, -np.inf]))
