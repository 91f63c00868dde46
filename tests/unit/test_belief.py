"""What is believed of labels: gate, interval, weights, turned labels; by hand and simulated."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from test_calibration import simulated

from sera_plugin.commands.report.signals import _of_labels
from sera_plugin.config import SeraConfig, parse_block
from sera_plugin.config.selection import SelectionConfig
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.reader import RunFiles, StoredRound
from sera_plugin.data.tables import ReviewTable, parquet_bytes
from sera_plugin.review.belief import Belief, believe, fused
from sera_plugin.review.calibration import Calibration, ErrorShare, weights
from sera_plugin.review.gate import gate
from sera_plugin.review.selection import History, choose
from sera_plugin.runtime.errors import RuleError, SeraConfigError
from sera_plugin.training.checks import check_trusted

WEIGHT: dict[str, Any] = {"by": "external", "use": "weight"}
NOTHING = np.zeros(0)


def judged(scores: np.ndarray, **keys: Any) -> Belief:
    """What a review believes by scores of the data."""
    return believe(SelectionConfig(**{**WEIGHT, **keys}), scores * 0, {"external": scores})


# --- the interval -------------------------------------------------------------------------------


def log_likelihood(error: float, slope: float, scores: np.ndarray) -> float:
    """Σ log P(the label is as it is | s), written out."""
    p = 1 / (1 + np.exp(-slope * scores))
    return float(np.log(error + (1 - 2 * error) * p).sum())


def test_the_interval_of_a_part_is_where_the_likelihood_has_fallen_by_half_the_quantile() -> None:
    scores, _ = simulated(400, 1.5, 0.25, seed=1)
    calibration = Calibration(scale=7.0, slope=1.5, error=0.3)
    found = calibration.error_share_of(scores)
    grid = np.linspace(0, 0.5, 5001)
    values = np.array([log_likelihood(error, 1.5, scores / 7) for error in grid])
    inside = grid[values >= values.max() - 1.92]
    assert found.value == pytest.approx(grid[values.argmax()], abs=2e-4)
    assert (found.low, found.high) == pytest.approx((inside[0], inside[-1]), abs=3e-4)
    assert found.pairs == 400
    assert 0 < found.low < found.high < 0.5


def test_the_interval_of_all_pairs_is_over_every_slope() -> None:
    scores, _ = simulated(400, 1.2, 0.3, seed=1)
    calibration = Calibration.fit(scores)
    assert calibration is not None
    found = calibration.error_share(scores)
    slopes = np.linspace(0.3, 4, 400)
    prior = ((np.log(slopes) - np.log(1.2)) / 0.3) ** 2 / 2

    def profile(error: float) -> float:
        given = scores / calibration.scale
        return max(
            log_likelihood(error, slope, given) - cost
            for slope, cost in zip(slopes, prior, strict=True)
        )

    best = profile(found.value)
    assert profile(found.low) == pytest.approx(best - 1.92, abs=0.02)
    assert profile(found.high) == pytest.approx(best - 1.92, abs=0.02)
    alone = calibration.error_share_of(scores)
    assert found.low < alone.low < alone.high < found.high, "a free slope makes it wider"


@pytest.mark.parametrize("error", [0.0, 0.2, 0.4])
def test_the_interval_holds_the_truth(error: float) -> None:
    held = 0
    for seed in range(10):
        scores, right = simulated(1500, 1.2, error, seed)
        calibration = Calibration.fit(scores)
        assert calibration is not None
        found = calibration.error_share(scores)
        held += found.low - 0.01 <= 1 - right.mean() <= found.high + 0.01
    assert held >= 9


def test_the_share_as_text() -> None:
    assert ErrorShare(0.203, 0.149, 0.252, 90).text == "20% [15%, 25%]"


# --- the gate -----------------------------------------------------------------------------------


def test_the_gate_by_hand() -> None:
    """a·s = ±log 3, so p is ¾ or ¼; of 400 labels the signal gives 240."""
    scores = np.repeat([1.0, -1.0], [240, 160])
    found = gate(scores, Calibration(scale=1.0, slope=np.log(3), error=0.2))
    assert found.agreement == pytest.approx(0.6 * 0.75 + 0.4 * 0.25)
    deviation = 0.5 * np.sqrt(0.6 * 0.4)
    assert found.agreement_low == pytest.approx(0.55 - 1.645 * deviation / 20)
    assert "it gives the labels 55.0% on average, 53.0% or more" in found.why


def test_scores_that_agree_no_better_than_chance_close_it() -> None:
    scores = np.repeat([1.0, -1.0], [205, 195])
    found = gate(scores, Calibration.fit(scores))
    assert not found.open
    assert found.why.endswith("so it agrees with them no better than chance")
    assert not gate(-simulated(2000, 1.2, 0.1)[0], Calibration.fit(np.ones(3))).open
    silent = gate(np.zeros(9), None)
    assert not silent.open
    assert silent.why == "it says nothing about any pair"


# Draws are those of a fixed seed: how a bound of 95% does on draws of any seed is chance.
@settings(max_examples=25, derandomize=True)
@given(st.integers(0, 10_000), st.integers(800, 2000), st.floats(1.2, 3.0))
def test_where_no_label_is_wrong_all_pairs_count_alike(seed: int, count: int, slope: float) -> None:
    """Where the bound lets a signal through by mistake, only the order of the weights is known."""
    scores = simulated(count, slope, 0.0, seed)[0]
    found = judged(scores)
    assert found.error is not None
    if found.verdict.open:
        assert 0 < found.error.low < 0.06
        assert found.weight.mean() == pytest.approx(1)
        assert (np.diff(found.weight[np.argsort(scores)]) >= 0).all()
    else:
        assert (found.weight == 1).all()
        assert not found.flipped.any()


def test_a_gate_that_opens_by_mistake_takes_weight_from_right_labels() -> None:
    found = judged(simulated(1470, 1.25, 0.0, 575)[0])
    assert found.verdict.open
    assert found.error is not None
    assert 0 < found.error.low < 0.02
    assert 0.1 < np.quantile(found.weight, 0.05) < 0.15


def test_the_gate_rarely_opens_where_no_label_is_wrong() -> None:
    opened = [judged(simulated(1000, 1.2, 0.0, seed)[0]).verdict.open for seed in range(40)]
    assert sum(opened) <= 4


@settings(max_examples=25, derandomize=True)
@given(st.integers(0, 10_000), st.floats(1.2, 2.5), st.floats(0.3, 0.38))
def test_many_wrong_labels_are_found(seed: int, slope: float, error: float) -> None:
    scores, right = simulated(2000, slope, error, seed)
    found = judged(scores)
    assert found.verdict.open
    assert found.error is not None
    assert found.error.low < 1 - right.mean() + 0.06
    assert found.error.high > 1 - right.mean() - 0.06
    assert (found.weight == 0).any()
    assert found.weight.mean() == pytest.approx(1)
    counted = (found.weight * right).sum() / found.weight.sum()
    assert counted > right.mean() + 0.05


def test_a_weak_signal_on_clean_labels_opens_it() -> None:
    """What the gate can't tell; docs/selection.md says so."""
    assert judged(simulated(2000, 0.4, 0.0)[0]).verdict.open


# --- trusted labels -----------------------------------------------------------------------------


def some_trusted(right: np.ndarray, count: int = 100) -> np.ndarray:
    mask = np.zeros(len(right), dtype=bool)
    mask[np.flatnonzero(right)[:count]] = True
    return mask


def judged_beside(scores: np.ndarray, trusted: np.ndarray, **keys: Any) -> Belief:
    config = SelectionConfig(**{**WEIGHT, **keys})
    return believe(config, scores * 0, {"external": scores}, trusted=trusted)


def test_trusted_labels_keep_a_weak_signal_from_clean_ones() -> None:
    """Of 20 draws each: without them a weak signal takes weight from right labels."""
    taken = []
    for seed in range(20):
        scores, right = simulated(1000, 0.4, 0.0, seed)
        for found in (judged(scores), judged_beside(scores, some_trusted(right))):
            taken.append(float(found.weight.sum() ** 2 / (found.weight**2).sum() / 1000))
    alone, beside = np.mean(taken[0::2]), np.mean(taken[1::2])
    assert alone < 0.8
    assert beside > 0.93


def test_trusted_labels_let_a_signal_work_where_labels_are_wrong() -> None:
    for seed in range(5):
        scores, right = simulated(1000, 1.2, 0.3, seed)
        found = judged_beside(scores, trusted := some_trusted(right))
        assert found.verdict.open
        assert found.error is not None
        assert found.error.low < 1 - right[~trusted].mean() < found.error.high
        assert (found.weight * right).sum() / found.weight.sum() > right.mean() + 0.05


def test_beside_trusted_labels_a_signal_that_knows_nothing_stays_out() -> None:
    draw = np.random.default_rng(0)
    shut = []
    for _ in range(40):
        found = judged_beside(draw.normal(size=600), some_trusted(np.ones(600)))
        shut.append(not found.verdict.open)
        assert found.weight.min() > 0.4
    assert sum(shut) >= 34


def test_a_trusted_label_is_right() -> None:
    scores, right = simulated(600, 1.5, 0.35, seed=3)
    trusted = some_trusted(right, 40)
    scores[np.flatnonzero(trusted)[0]] = np.nan
    assert (scores[trusted] < 0).any()
    names = ["a"] * 300 + ["b"] * 300
    settings = SelectionConfig(**WEIGHT, sources="crowd")
    found = believe(settings, scores * 0, {"external": scores}, names, trusted)
    assert (found.right[trusted] == 1).all()
    assert (found.weight[trusted] == found.weight.max()).all()
    assert found.error is not None
    assert found.error.pairs == 560
    assert found.sources["a"].pairs + found.sources["b"].pairs == 560
    assert not judged_beside(scores, trusted, use="relabel").flipped[trusted].any()
    assert "39 trusted ones say how much it knows; wrong labels: " in found.text(settings)
    assert "prior" not in found.text(settings)
    assert "%], its strength taken from a prior; weights between " in judged(scores).text(settings)
    assert found.verdict.trusted == 39
    assert found.warning(settings) is None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["yes"] * 30, "sera.selection.trusted: ok holds 'yes'; allowed are true, false and null."),
        ([1.0] * 29 + [0.5], "sera.selection.trusted: ok holds 0.5; allowed are true, false and"),
        ([True] * 19 + [None], "sera.selection.trusted: ok is true for 19 of 20 pairs; 20 or more"),
    ],
)
def test_a_column_that_says_too_little(values: list[Any], says: str) -> None:
    with pytest.raises(SeraConfigError) as error:
        check_trusted("ok", Dataset.from_dict({"ok": values}))
    assert str(error.value).startswith(says)


def test_a_column_of_marks() -> None:
    marks = Dataset.from_dict({"ok": [True] * 20 + [False, None], "one": [1.0] * 20 + [0.0, None]})
    for name in ("", "ok", "one"):
        check_trusted(name, marks)


def test_signals_are_fused_as_trusted_labels_measure_them() -> None:
    """Of two signals, one right everywhere and one that knows nothing, the first decides."""
    good, right = simulated(800, 3.0, 0.3, seed=5)
    noise = np.random.default_rng(0).normal(size=800)
    names, values = ["contrast", "external"], {"contrast": good, "external": noise}
    trusted = some_trusted(right)
    settings = SelectionConfig(by=names, use="weight")
    found = believe(settings, good * 0, values, trusted=trusted)
    scores = fused(names, values, trusted)
    assert np.corrcoef(scores, good)[0, 1] > 0.95 > np.corrcoef(fused(names, values), good)[0, 1]
    np.testing.assert_array_equal(found.scores, scores)


# --- what becomes of pairs ----------------------------------------------------------------------


def noisy() -> tuple[np.ndarray, np.ndarray]:
    scores, _ = simulated(600, 1.5, 0.35, seed=3)
    scores[:2] = np.nan
    calibration = Calibration.fit(scores)
    assert calibration is not None
    return scores, calibration.posterior(scores)


def test_weights_are_those_of_the_posterior() -> None:
    scores, right = noisy()
    found = judged(scores)
    assert found.verdict.open
    np.testing.assert_allclose(found.right, right)
    expected = np.maximum(0, 2 * right - 1)
    expected /= np.nanmean(expected)
    np.testing.assert_allclose(found.weight[2:], expected[2:])
    assert found.weight[:2].tolist() == [1, 1], "nothing is known of them"
    assert found.scores[:2].tolist() == [0, 0], "and they stay"
    assert not found.flipped.any()


def test_labels_are_turned_below_the_limit() -> None:
    scores, right = noisy()
    for limit in (0.5, 0.3):
        found = judged(scores, use="relabel", relabel_below=limit)
        assert found.flipped.tolist() == (right < limit).tolist()
        assert 0 < found.flipped.sum() < 300
        assert (found.weight == 1).all()
        assert f"; {found.flipped.sum()} labels are turned." in found.text(
            SelectionConfig(**WEIGHT | {"use": "relabel"})
        )


def test_keep_auto_drops_what_is_rather_wrong() -> None:
    scores, right = noisy()
    settings = SelectionConfig(by="external", keep="auto")
    found = believe(settings, scores * 0, {"external": scores})
    assert np.isnan(found.scores).tolist() == (right < 0.5).tolist()
    clean, _ = simulated(600, 1.5, 0.0)
    found = believe(settings, clean * 0, {"external": clean})
    assert not np.isnan(found.scores).any()
    assert found.text(settings).endswith("the gate is closed, all pairs stay with weight 1.")


def test_without_the_gate_the_calibration_decides() -> None:
    scores, _ = simulated(300, 1.2, 0.15, seed=4)
    assert (judged(scores).weight == 1).all()
    found = judged(scores, gate=False)
    calibration = Calibration.fit(scores)
    assert calibration is not None
    np.testing.assert_allclose(found.weight, weights(calibration.posterior(scores)))
    assert found.text(SelectionConfig(**WEIGHT, gate=False)).endswith("without the gate.")


def test_a_number_to_keep_is_not_gated() -> None:
    scores, _ = simulated(300, 1.2, 0.0)
    found = believe(SelectionConfig(by="external"), scores * 0, {"external": scores})
    assert found.scores is not None
    np.testing.assert_array_equal(found.scores, scores)
    assert (found.weight == 1).all()


def test_a_silent_signal_changes_nothing() -> None:
    found = judged(np.zeros(8))
    assert found.weight.tolist() == [1] * 8
    assert found.error is None
    with pytest.raises(RuleError, match=r"^sera.selection.by: external has no finite number for"):
        judged(np.full(8, np.nan))


def test_fused_signals_add_their_log_odds() -> None:
    one, other = simulated(300, 1.2, 0.2, seed=1)[0], simulated(300, 2.0, 0.2, seed=2)[0] / 9
    one[0] = other[0] = other[1] = np.nan
    fits = [Calibration.fit(values) for values in (one, other)]
    assert fits[0] is not None
    assert fits[1] is not None
    found = fused(["contrast", "my.module:other"], {"contrast": one, "other": other})
    odds = [fit.slope * v / fit.scale for fit, v in zip(fits, (one, other), strict=True) if fit]
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(odds[0][1])
    assert found[2:] == pytest.approx((odds[0] + odds[1])[2:])
    p = [1 / (1 + np.exp(-values[2])) for values in odds]
    both = p[0] * p[1] / (p[0] * p[1] + (1 - p[0]) * (1 - p[1]))
    assert found[2] == pytest.approx(np.log(both / (1 - both)))


def test_the_gate_does_not_ask_the_policys_margin() -> None:
    """A margin that has memorised the labels agrees with them; the gate hears the signal alone."""
    signal, _ = simulated(1000, 1.2, 0.0)
    margin = -np.abs(signal)
    settings = SelectionConfig(by=["margin", "external"], use="weight")
    found = believe(settings, margin, {"external": signal})
    assert not found.verdict.open
    assert found.verdict == gate(signal, Calibration.fit(signal))


def test_a_gate_that_opened_narrowly_is_named() -> None:
    """At 40% wrong labels a good signal agrees with them as little as one that knows nothing."""
    settings = SelectionConfig(**WEIGHT)
    narrow, wide = (judged(simulated(3000, 1.2, error)[0]) for error in (0.4, 0.2))
    assert narrow.verdict.open
    assert wide.verdict.open
    assert narrow.verdict.agreement < 0.54 < wide.verdict.agreement
    said = narrow.warning(settings)
    assert said is not None
    assert f"external gives the labels only {100 * narrow.verdict.agreement:.1f}% on" in said
    assert wide.warning(settings) is None
    assert narrow.warning(SelectionConfig(**WEIGHT, gate=False)) is None, "it was not asked"
    closed = judged(simulated(3000, 1.2, 0.0)[0])
    assert closed.warning(settings) is None
    assert narrow.warning(SelectionConfig(by="external")) is None, "`keep` says how many stay"


def test_sources_have_shares_of_their_own() -> None:
    good, _ = simulated(500, 1.2, 0.0, seed=1)
    bad, _ = simulated(500, 1.2, 0.4, seed=2)
    few = np.ones(19)
    names = ["good"] * 500 + [7] * 500 + ["few"] * 19
    scores = np.concatenate([good, bad, few])
    settings = SelectionConfig(**WEIGHT, sources="crowd")
    found = believe(settings, scores * 0, {"external": scores}, names).sources
    assert list(found) == ["7", "good"]
    assert found["good"].high < 0.2 < found["7"].low
    assert found["7"].pairs == 500


# --- the round ----------------------------------------------------------------------------------


def chosen(settings: SelectionConfig, belief: Belief, keep: int = 4, **more: Any) -> Any:
    margin = more.pop("margin", np.array([5.0, 4.0, 3.0, 2.0]))
    history = History.of([margin], [margin])
    return choose(
        ("a", "b", "c", "d"), history, keep, settings, belief=belief, round_number=2, seed=7
    )


def belief_of(scores: list[float], flipped: tuple[int, ...] = ()) -> Belief:
    mask = np.zeros(4, dtype=bool)
    mask[list(flipped)] = True
    given = np.array(scores)
    return Belief(given, given, np.ones(4), mask, gate(given, None), None)


def test_scores_take_the_place_of_the_margin() -> None:
    found = chosen(SelectionConfig(by="external"), belief_of([-1, 0.5, np.nan, 2]), keep=2)
    assert found.ranked.tolist() == [3, 1, 0]
    assert found.kept.tolist() == [False, True, False, True]


def test_a_turned_pair_is_kept_by_its_turned_score() -> None:
    settings = SelectionConfig(by="external", use="relabel")
    found = chosen(settings, belief_of([-3, 0.5, 0, 2], flipped=(0,)))
    assert found.flipped.tolist() == [True, False, False, False]
    assert found.ranked.tolist() == [0, 3, 1, 2]


def test_what_the_policy_finds_no_number_for_is_set_aside() -> None:
    margin = np.array([5.0, np.nan, 3.0, 2.0])
    found = chosen(SelectionConfig(**WEIGHT), belief_of([1, 2, 3, 4]), margin=margin)
    assert found.kept.tolist() == [True, False, True, True]


def test_beliefs_are_stored_only_where_they_were_asked() -> None:
    ids, zeros, no = ("a", "b"), np.zeros(2), np.zeros(2, dtype=bool)
    logps = PairLogps(ids, zeros, zeros)
    rounds = np.ones(2, dtype=np.int32)
    plain = ReviewTable(ids, logps, logps, zeros, zeros, no, zeros, no, rounds)
    assert not {"right", "weight"} & set(plain.to_arrow().column_names)
    assert ReviewTable.from_arrow(plain.to_arrow()).weight is None
    right = np.array([0.9, np.nan])
    table = ReviewTable(
        ids, logps, logps, zeros, zeros, no, zeros, no, rounds, {}, right, np.array([1.5, 0.5])
    )
    read = ReviewTable.from_arrow(pq.read_table(io.BytesIO(parquet_bytes(table.to_arrow()))))
    np.testing.assert_array_equal(read.right, right)  # type: ignore[arg-type]
    assert read.weight is not None
    assert read.weight.tolist() == [1.5, 0.5]


def test_the_report_shows_the_share_of_wrong_labels() -> None:
    summary = {
        "label_errors": 0.21, "label_errors_low": 0.14, "label_errors_high": 0.25,
        "agreement": 0.61, "gate_open": 1.0, "label_errors_by": {"x": [0.4, 0.3, 0.5, 90], "y": 3},
    }  # fmt: skip
    rounds = (StoredRound(1, Path(), summary, True), StoredRound(2, Path(), {}, True))
    rows = list(_of_labels(RunFiles(Path(), Path(), {}, rounds, ())))
    assert [row[0] for row in rows] == [
        "label_errors", "agreement", "gate_open", "label_errors of x", "label_errors of y",
    ]  # fmt: skip
    assert rows[0][3:5] == ["21.0% (14.0% to 25.0%)", "–"]
    assert rows[1][3:5] == ["61.0%", "–"]
    assert rows[3][3:5] == ["40.0% (30.0% to 50.0%)", "–"]
    assert rows[4][3:5] == ["–", "–"]


# --- the block ----------------------------------------------------------------------------------


def block(**selection: Any) -> SeraConfig:
    found = parse_block({"selection": selection})
    assert found is not None
    return found


def test_the_preset() -> None:
    found = parse_block({"preset": "contrast"})
    assert found is not None
    assert found.warmup_rounds == 0
    assert found.reviews
    assert found.selection.by == ["contrast"]
    assert found.selection.planned == (1.0,)
    assert found.selection.asked
    assert [(term.name, term.settings) for term in found.terms] == [
        ("posterior", {"source": "review"})
    ]
    again = parse_block({"preset": "contrast", "selection": {"by": ["external"], "gate": False}})
    assert again is not None
    assert again.selection.use == "weight"
    assert not again.selection.asked
    assert again.selection.reads_scores


def test_a_block_without_the_new_keys_is_stored_as_before() -> None:
    new = {"by", "use", "relabel_below", "gate", "sources", "signals", "contrast", "trusted"}
    assert not new & block().selection.model_dump().keys()
    stored = block(by="contrast").selection.model_dump()
    assert new - stored.keys() == {"signals", "trusted"}
    assert block(by="contrast", trusted="ok").selection.model_dump()["trusted"] == "ok"
    assert SelectionConfig(**stored) == block(by="contrast").selection


def test_keeping_all_of_the_data_reviews_only_where_something_may_happen() -> None:
    def reviews(**selection: Any) -> bool:
        found = parse_block({"selection": selection, "bootstrap": False})
        assert found is not None
        return found.reviews

    assert not reviews(keep="auto")
    assert not reviews(keep=1.0, by="contrast")
    assert reviews(keep="auto", by="contrast")
    assert reviews(use="weight", by="contrast")
    assert reviews(use="relabel", by="external")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"use": "weight"}, "sera.selection.gate: true keeps all pairs as they are beside "),
        ({"use": "weight", "by": "contrast", "keep": 0.7}, "sera.selection.keep: 0.7 can't be "),
        ({"use": "relabel", "by": "external", "rule": "band"}, "sera.selection.rule: band can't "),
        (
            {"use": "weight", "by": "external", "on_negative": "flip"},
            "sera.selection.on_negative: flip can't be used with sera.selection.use: weight",
        ),
        ({"by": "contrast", "rule": "random"}, "sera.selection.by: contrast has no effect beside"),
        (
            {"by": ["margin", "contrast"], "uncertainty": 1.0},
            "sera.selection.uncertainty: 1.0 can't be used with sera.selection.by: [margin, con",
        ),
        (
            {"by": ["margin", "contrast"], "trusted": "checked"},
            "sera.selection.trusted: checked can't be used with sera.selection.by: [margin, contr",
        ),
        ({"by": "contast"}, "sera.selection.by: 'contast' is unknown; did you mean contrast?"),
        ({"by": ["contrast", "contrast"]}, "sera.selection.by: contrast is there twice; "),
        ({"by": []}, "sera.selection.by: [] is not allowed; it must be margin, length, "),
        ({"use": "weigh"}, "sera.selection.use: 'weigh' is not allowed; it must be drop or "),
        ({"relabel_below": 0.6}, "sera.selection.relabel_below: 0.6 is not allowed; it must be a "),
    ],
)
def test_what_does_not_go_together(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(SeraConfigError) as error:
        parse_block({"selection": raw})
    assert str(error.value).startswith(says), str(error.value)
    assert "\n" not in str(error.value)


def test_pairs_are_weighed_once() -> None:
    with pytest.raises(SeraConfigError, match="both weigh pairs; write one of them"):
        parse_block({"preset": "contrast", "loss": ["posterior"]})


@pytest.mark.parametrize("more", [{"fraction": 0.3}, {"judge": "my:own", "judge_mode": "agree"}])
def test_round_1_ranks_no_answers_by_a_reward_that_says_nothing(more: dict[str, Any]) -> None:
    with pytest.raises(SeraConfigError, match=r"^sera.warmup_rounds: 0 is not allowed where the"):
        parse_block({"preset": "contrast", "bootstrap": {"fraction": 0.3, **more}})
