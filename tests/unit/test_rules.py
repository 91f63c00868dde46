"""Rules of selection: by hand, and as properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sera_plugin.config import SelectionConfig
from sera_plugin.review import rules
from sera_plugin.review.rules import Evidence
from sera_plugin.review.selection import Choice, History, choose
from sera_plugin.runtime.errors import RuleError, SeraConfigError

NAN = float("nan")
IDS = ("d", "a", "c", "b", "e")
MARGIN = np.array([0.5, 2.0, 0.5, -1.0, NAN])


def evidence(margin=MARGIN, ids=IDS, *, external=None, loss=None, keep=2, number=2, seed=7):
    margin = np.asarray(margin, dtype=np.float64)
    return Evidence(
        ids=tuple(ids),
        margin=margin,
        uncertainty=np.zeros(len(margin)),
        external=None if external is None else np.asarray(external, dtype=np.float64),
        loss_difference=None if loss is None else np.asarray(loss, dtype=np.float64),
        keep=keep,
        round_number=number,
        seed=seed,
    )


def same(found, expected):
    np.testing.assert_allclose(found, np.array(expected, dtype=np.float64), rtol=1e-12)


def test_top_bottom_and_threshold_by_hand():
    same(rules.top(evidence()), MARGIN)
    same(rules.bottom(evidence()), [-0.5, -2.0, -0.5, 1.0, NAN])
    same(rules.above(evidence(), 0.5), [NAN, 2.0, NAN, NAN, NAN])


def test_percentiles_by_hand():
    # From below: b (−1), then d and c (0.5; the larger id lies lower), then a.
    same(rules.percentiles(IDS, MARGIN), [25.0, 75.0, 50.0, 0.0, NAN])


def test_band_by_hand():
    same(rules.band(evidence(), [25, 75]), [0.5, NAN, 0.5, NAN, NAN])
    same(rules.band(evidence(), [0, 100]), MARGIN)


def test_lossdiff_irm_by_hand():
    # Percentiles of the margins 25, 75, 50, 0; of the losses 0, 25, 50, 75.
    found = rules.lossdiff_irm(evidence(loss=[-3.0, -2.0, -1.0, 5.0, 0.0]))
    # The fifth pair has a loss but no margin; it shifts the losses: d 0, a 20, c 40, e 60, b 80.
    same(found, [-50.0, -30.0, -10.0, -50.0, NAN])


def test_lossdiff_irm_needs_the_auxiliary_policy():
    with pytest.raises(RuleError, match="auxiliary policy"):
        rules.lossdiff_irm(evidence())


def test_log_odds_by_hand():
    # Root mean square of 3 and 4 with signs: sqrt(25 / 2).
    same(rules.log_odds(np.array([3.0, -4.0, NAN])), np.array([3, -4, NAN]) / math.sqrt(12.5))
    same(rules.log_odds(np.array([3.0, -4.0]), 2.0), [1.5, -2.0])
    same(rules.log_odds(np.array([0.0, 0.0])), [0.0, 0.0])


def test_fusion_is_the_product_rule():
    margin, external = np.array([1.0, -0.3, 0.2]), np.array([0.4, 0.8, -2.0])
    found = rules.fused(evidence(margin, "abc", external=external), 2.0, 0.5)
    p, q = (1 / (1 + np.exp(-x)) for x in (margin / 2.0, external / 0.5))
    product = p * q / (p * q + (1 - p) * (1 - q))
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), product, rtol=1e-12)


def test_fusion_without_an_external_margin_is_the_implicit_one():
    found = rules.fused(evidence([1.0, 2.0], "ab", external=[NAN, 3.0]), 1.0, 1.0)
    same(found, [1.0, 5.0])


def test_external_only_by_hand():
    found = rules.external_only(evidence(external=[3.0, NAN, -1.0, 0.5, 9.0]))
    same(found, [3.0, NAN, -1.0, 0.5, NAN])


@pytest.mark.parametrize("external", [None, [NAN] * 5])
def test_external_needs_scores(external):
    with pytest.raises(RuleError, match=r"sera\.selection\.external names their columns"):
        rules.external_only(evidence(external=external))


def test_the_random_rule_is_drawn_anew_for_every_seed_and_round():
    ids = [f"{i:03d}" for i in range(200)]
    margin = np.arange(200.0)
    one = rules.shuffled(evidence(margin, ids))
    assert np.array_equal(one, rules.shuffled(evidence(margin[::-1], ids)))
    for other in (evidence(margin, ids, number=3), evidence(margin, ids, seed=8)):
        assert abs(np.corrcoef(one, rules.shuffled(other))[0, 1]) < 0.3
    assert 0.4 < one.mean() < 0.6
    assert len(set(one)) == 200


def settings_of(**keys):
    return SelectionConfig.model_validate(keys)


def chosen(settings, margins, keep, ids=IDS, **rest) -> Choice:
    margins = np.atleast_2d(np.asarray(margins, dtype=np.float64))
    history = History.of(list(margins), list(margins))
    return choose(tuple(ids), history, keep, settings, **({"round_number": 2, "seed": 7} | rest))


def kept(choice: Choice, ids=IDS):
    return {ids[i] for i in np.flatnonzero(choice.kept)}


def test_the_default_is_the_top_with_ties_by_id():
    choice = chosen(settings_of(), MARGIN, 2)
    assert kept(choice) == {"a", "c"}
    assert [IDS[i] for i in choice.ranked] == ["a", "c", "d", "b"]
    assert choice.passed == 4
    assert not choice.flipped.any()


def test_a_threshold_that_nobody_passes_falls_back_to_the_largest():
    choice = chosen(settings_of(rule="threshold", threshold=5), MARGIN, 2)
    assert choice.passed == 0
    assert kept(choice) == {"a", "c"}
    # Not to those that the policy doubts, unless it doubts all.
    assert kept(chosen(settings_of(rule="threshold", threshold=5), MARGIN, 4)) == {"a", "c", "d"}
    assert kept(chosen(settings_of(rule="threshold", threshold=5), MARGIN - 9, 2)) == {"a", "c"}


def test_a_threshold_that_few_pass_keeps_fewer():
    choice = chosen(settings_of(rule="threshold", threshold=1), MARGIN, 3)
    assert kept(choice) == {"a"}
    assert len(choice.ranked) == choice.passed == 1


def test_uncertainty_by_hand():
    # Means 2 and 1.5, deviations 1 and 0: with k = 1, 3 − 1 < 1.5 + 0.6.
    margins = [[1.0, 2.1], [3.0, 2.1]]
    assert kept(chosen(settings_of(), margins, 1, "xy"), "xy") == {"x"}
    assert kept(chosen(settings_of(uncertainty=1), margins, 1, "xy"), "xy") == {"y"}


def test_uncertainty_skips_reviews_without_a_number():
    history = History.of([np.array([1.0, NAN]), np.array([3.0, 4.0])], [np.zeros(2)] * 2)
    same(history.uncertainty(), [1.0, 0.0])


def test_flipped_pairs_compete_with_the_sign_turned():
    # Deviations over D are sqrt(14) and more; only b is below minus one of them in both reviews.
    margins = [[1.0, 2.0, -0.5, -8.0, 1.0], [1.0, 2.0, -0.5, -9.0, 1.0]]
    flip = chosen(settings_of(on_negative="flip"), margins, 2)
    assert {IDS[i] for i in np.flatnonzero(flip.flipped)} == {"b"}
    assert kept(flip) == {"b", "a"}
    same(flip.scores, [1.0, 2.0, -0.5, 9.0, 1.0])
    drop = chosen(settings_of(on_negative="drop"), margins, 5)
    assert kept(drop) == set(IDS) - {"b"}
    keep = chosen(settings_of(), margins, 5)
    assert kept(keep) == set(IDS)
    assert not keep.flipped.any()
    assert not drop.flipped.any()


def test_repair_waits_for_enough_reviews_and_enough_certainty():
    margins = [[1.0, 2.0, -0.5, -8.0, 1.0], [1.0, 2.0, -0.5, -9.0, 1.0]]
    late = settings_of(on_negative="flip", negative_reviews=3)
    sure = settings_of(on_negative="flip", negative_deviations=3)
    any_ = settings_of(on_negative="flip", negative_deviations=0)
    assert not chosen(late, margins, 2).flipped.any()
    assert not chosen(sure, margins, 2).flipped.any()
    assert {IDS[i] for i in np.flatnonzero(chosen(any_, margins, 2).flipped)} == {"b", "c"}


def test_flipping_turns_the_external_margin_too():
    margins = [[-8.0, 1.0, 1.0]] * 2
    settings = settings_of(on_negative="flip", rule="external", external={"mode": "only"})
    choice = chosen(settings, margins, 1, "xyz", external=np.array([-5.0, 1.0, 2.0]))
    assert kept(choice, "xyz") == {"x"}


def prefer_long_ids(given: Evidence) -> np.ndarray:
    return np.array([len(i) for i in given.ids])


def positive(given: Evidence) -> np.ndarray:
    return given.margin > 0


def test_a_rule_of_the_users_own():
    path = f"{__name__}:prefer_long_ids"
    assert kept(
        chosen(settings_of(rule=path), [1, 2, 3], 1, ("a", "bbb", "cc")), ("a", "bbb", "cc")
    )
    choice = chosen(settings_of(rule=f"{__name__}:positive"), MARGIN, 5)
    assert kept(choice) == {"d", "a", "c"}


def broken(given: Evidence) -> np.ndarray:
    raise KeyError("oops")


def short(given: Evidence) -> np.ndarray:
    return np.zeros(1)


def text(given: Evidence) -> np.ndarray:
    return np.array(["x"] * len(given.ids))


def nothing(given: Evidence) -> np.ndarray:
    return np.full(len(given.ids), NAN)


NUMBER = 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "raised KeyError: 'oops'"),
        ("short", r"returned shape \(1,\) for 5 pairs"),
        ("text", "returned values of type <U1"),
        ("nothing", "keeps none of the 5 pairs"),
        ("absent", "can't be imported"),
        ("NUMBER", "is no function"),
    ],
)
def test_a_rule_that_breaks_its_contract_is_named(name, words):
    with pytest.raises((RuleError, SeraConfigError), match=words) as caught:
        chosen(settings_of(rule=f"{__name__}:{name}"), MARGIN, 2)
    assert "sera.selection.rule: " in str(caught.value)
    assert "\n" not in str(caught.value)


ALL = [
    settings_of(rule="top"),
    settings_of(rule="bottom"),
    settings_of(rule="random"),
    settings_of(rule="band", band=[20, 80]),
    settings_of(rule="threshold", threshold=0.3),
    settings_of(rule="lossdiff_irm"),
    settings_of(rule="external"),
    settings_of(rule="external", external={"mode": "only"}),
    settings_of(on_negative="flip", negative_reviews=1),
    settings_of(on_negative="drop", negative_reviews=1, uncertainty=0.5),
    settings_of(rule=f"{__name__}:prefer_long_ids"),
]
VALUES = st.sampled_from([-2.0, -0.5, 0.0, 0.0, 1.0, 1.0, 3.5, NAN])
PAIRS = st.dictionaries(
    st.text("ab01", min_size=1, max_size=4), st.tuples(VALUES, VALUES), min_size=1, max_size=12
).filter(lambda table: any(math.isfinite(m) and math.isfinite(e) for m, e in table.values()))


@pytest.mark.parametrize("settings", ALL, ids=lambda s: f"{s.rule}-{s.on_negative}")
@given(pairs=PAIRS, data=st.data())
def test_every_rule_is_of_the_right_size_and_knows_no_order(settings, pairs, data):
    ids = list(pairs)
    keep = data.draw(st.integers(1, len(ids)))
    order = data.draw(st.permutations(range(len(ids))))

    def run(names):
        values = np.array([pairs[i] for i in names])
        return chosen(
            settings,
            values[:, 0],
            keep,
            tuple(names),
            external=values[:, 1],
            loss_difference=np.where(np.isfinite(values[:, 0]), values[:, 1], NAN),
        )

    one, other = run(ids), run([ids[i] for i in order])
    assert kept(one, ids) == kept(other, [ids[i] for i in order])
    assert one.kept.sum() == min(keep, len(one.ranked))
    assert [ids[i] for i in one.ranked] == [ids[order[i]] for i in other.ranked]
    assert [ids[i] for i in one.ranked] == sorted(
        (ids[i] for i in one.ranked), key=lambda name: (-one.scores[ids.index(name)], name)
    ), "ties are not by id"
    margins = np.array([pairs[i][0] for i in ids])
    assert np.isfinite(margins[one.ranked]).all()
    assert np.isnan(one.scores[~np.isfinite(margins)]).all()
