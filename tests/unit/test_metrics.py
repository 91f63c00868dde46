"""Numbers of a review, worked out by hand, and the table that shows them."""

import re
from dataclasses import fields, replace

import numpy as np
import pytest
from reviews import DECISION, PAIRS, QUIET, logps, review_of, table_of

from sera_plugin.config import SelectionConfig
from sera_plugin.data.metrics import (
    METRICS,
    SET,
    SET_ASIDE,
    SOURCES,
    label_of,
    metrics_as_markdown,
    metrics_of,
)
from sera_plugin.review.belief import believe
from sera_plugin.review.guard import Signals
from sera_plugin.review.metrics import (
    accuracy,
    belief_text,
    first_spread,
    guard_text,
    review_metrics,
    table_text,
)
from sera_plugin.review.pairing import Shortfall
from sera_plugin.training.refinement import delta_statistics


def test_every_number_by_hand():
    found = review_metrics(
        review_of(evaluation={"eval": logps([1, 2, np.nan], [0, 3, -9], ("x", "y", "z"))}),
        PAIRS,
        table_of([True, False, True, False]),
    )
    assert found == pytest.approx(
        {
            "round": 3,
            "margin_mean": -0.25,
            # Deviations 2.25, 1.25, −3.75, 0.25: squares sum to 20.75, over 4.
            "set_aside": 0.0,
            # Measured in rounds 2, 2, 0 and 1; the review composes round 3.
            "aged_margins": 2.0,
            "margin_std": 5.1875**0.5,
            # Sorted −4, 0, 1, 2; quantile q lies at 3q between them.
            "margin_q05": -3.4,
            "margin_q25": -1.0,
            "margin_q50": 0.5,
            "margin_q75": 1.25,
            "margin_q95": 1.85,
            "threshold": 0.5,
            "accuracy_train": 0.5,
            "accuracy_eval": 0.5,
            "set_aside_eval": 1.0,
            "set_aside_answers": 2.0,
            "kept": 2,
            "eligible": 3,
            "flipped": 1,
            "kept_overlap": 0.5,
            "bootstrapped": 2,
            "shortfall": 2,
            "filled": 2,
            # Of c and d, whose margins are negative, c is turned around.
            "filled_negative": 1,
            "length_penalty": 0.01,
            "prompts_without_room": 2,
            "short_duplicates": 3,
            "chosen_tokens_offline": 15,
            "rejected_tokens_offline": 1.5,
            "chosen_tokens_bootstrapped": 2.5,
            "rejected_tokens_bootstrapped": 2,
            "fresh_chosen_share": 0.5,
            "bootstrapped_margin_mean": 0.4,
            "unique_answer_ratio": 0.5,
            "finished_answer_ratio": 0.75,
            "kl_policy_samples": 1.25,
            "guard_share": 0.5,
            "guard_left_out": 1,
            "guard_drift": 0.25,
            "guard_spread": 0.25,
            "guard_spread_ratio": 0.25,
            "guard_length_correlation": 0.25,
            "guard_agreement": 0.25,
            "seconds_scoring": 4,
            "tokens_per_second_scoring": 250,
            "seconds_generation": 2,
            "tokens_per_second_generation": 150,
        }
    )


def test_the_registry_has_what_a_round_reports_and_nothing_else():
    review = review_of(evaluation={"eval": logps([1], [0], ("x",))})
    everything = replace(
        review.bootstrapped,
        short=dict.fromkeys(Shortfall, 1),
        decision=replace(DECISION, signals=Signals(*[QUIET] * len(fields(Signals)))),
    )
    found = review_metrics(replace(review, bootstrapped=everything), PAIRS, review.table)
    seen = np.repeat([2.0, -1.0], [70, 30])
    belief = believe(SelectionConfig(by="external"), seen, {"external": seen})
    found |= review_metrics(replace(review, belief=belief), PAIRS, review.table)
    found |= delta_statistics([0.0, 1.0], [1.0, 2.0], [3.0, 4.0])
    # What the trainer and the refiner add at the end of a round; tests/run looks at their files.
    closing = {"seconds_training", "tokens_per_second_training", "seconds_refining", "unrefined"}
    families = {f"{stem}_{SET}": f"{stem}_eval" for stem in ("accuracy", "set_aside")}
    known = [families.get(metric.name, metric.name) for metric in METRICS]
    assert len(known) == len(set(known))
    assert set(known) == set(found) | closing


def test_a_set_of_its_own_name_belongs_to_a_family():
    names = [
        "set_aside_answers",
        SET_ASIDE,
        SOURCES,
        "unknown",
        "accuracy_maths",
        "accuracy_train",
        "set_aside",
    ]
    found = {metric.name: metric for metric in metrics_of(names)}
    assert list(found) == ["set_aside", "set_aside_answers", "accuracy_train", "accuracy_maths"]
    assert found["accuracy_maths"].title == "accuracy maths"
    assert found["set_aside_answers"].unit == "completions"
    assert label_of("kept") == "offline pairs kept"


def test_metrics_are_formatted_and_explained():
    assert all(metric.meaning and metric.text(1234.5) for metric in METRICS)
    kept, share, margin = metrics_of(["kept", "guard_share", "margin_mean"])
    assert (kept.text(1234.0), kept.text(1234.0, ",")) == ("1234", "1,234")
    assert (share.text(0.5), margin.text(-0.25)) == ("50%", "-0.250")
    rows = metrics_as_markdown().splitlines()
    assert rows[0] == "| Metric | Unit | Meaning |"
    assert "| `chosen_tokens_offline`, `rejected_tokens_offline` | tokens |" in "\n".join(rows)
    assert {len(row.split(" | ")) for row in rows} == {3}


def test_what_was_not_done_is_left_out():
    found = review_metrics(review_of(bootstrapped=False), PAIRS, None)
    for name in found:
        assert not name.startswith(
            ("accuracy_eval", "kl_", "unique", "finished", "short_", "guard")
        )
    assert not {"kept_overlap", "seconds_generation", "chosen_tokens_bootstrapped"} & set(found)
    assert all(type(value) is float and np.isfinite(value) for value in found.values())


def test_what_the_guard_decided_is_said_and_its_first_spread_found_again():
    assert guard_text(review_of()) == {
        "guard": "at most 2 of 4 planned bootstrapped pairs may enter: so it is."
    }
    assert guard_text(review_of(bootstrapped=False)) == {}
    rounds = [{"round": 1.0}, {"guard_share": 1.0}, {"guard_spread": 2.5}, {"guard_spread": 7.0}]
    assert first_spread(rounds) == 2.5
    assert first_spread(rounds[:2]) is None


def test_accuracy_by_hand():
    assert accuracy(logps([3, 1, 0, 2], [1, 0, 4, 2])) == 0.5
    assert np.isnan(accuracy(logps([], [], ())))
    # A pair without numbers is neither right nor wrong.
    assert accuracy(logps([3, np.nan, np.inf, 0], [1, 0, 4, 1])) == 0.5
    assert np.isnan(accuracy(logps([np.nan] * 4, [0] * 4)))


def cells_of(text):
    lines = [line for line in text.splitlines() if line[:1] in "│┃"]
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if line]


def test_the_table_shows_every_round_in_a_column_of_its_own():
    first = {"round": 1.0, "kept": 61135.0, "seconds_training": 3600.04}
    review = review_of(evaluation={"maths": logps([1], [0], ("x",))})
    second = review_metrics(review, PAIRS, table_of([True, False, True, False]))
    text = table_text([first, second])
    assert cells_of(text) == [
        ["round", "1", "3"],
        ["kept", "61135", "2"],
        ["bootstrapped", "-", "2"],
        ["filled", "-", "2"],
        ["guard", "-", "50%"],
        ["margin", "-", "-0.250"],
        ["threshold", "-", "0.500"],
        ["accuracy", "-", "50.0%"],
        ["accuracy maths", "-", "100.0%"],
        ["overlap", "-", "50.0%"],
        ["KL", "-", "1.25"],
        ["score s", "-", "4.0"],
        ["sample s", "-", "2.0"],
        ["train s", "3600.0", "-"],
    ]
    assert "\x1b" not in text
    assert text.splitlines()[0].strip() == "SeRA rounds"


def test_the_table_of_a_long_run_is_not_cut():
    widest = {
        "round": 99.0,
        "kept": 1234567.0,
        "bootstrapped": 1234567.0,
        "filled": 1234567.0,
        "guard_share": 1.0,
        "margin_mean": -1234.567,
        "threshold": -1234.567,
        "accuracy_train": 1.0,
        "kept_overlap": 1.0,
        "kl_policy_samples": -1234.56,
        "seconds_scoring": 12345.6,
        "seconds_generation": 12345.6,
        "seconds_training": 12345.6,
    }
    text = table_text([widest | {"round": float(number)} for number in range(1, 13)])
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    rows = [row for row in cells_of(text) if row[0] == "margin"]
    assert [cell for row in rows for cell in row[1:]] == ["-1234.567"] * 12
    for shown in ("1234567", "100.0%", "-1234.56", "12345.6", "threshold", "12 ┃"):
        assert shown in text
    assert table_text([]).strip() == ""


def test_what_is_believed_of_labels_by_hand():
    seen = np.repeat([2.0, -1.0], [300, 100])
    settings = SelectionConfig(by="external", use="weight", gate=False, sources="crowd")
    belief = believe(settings, seen, {"external": seen}, ["x"] * 200 + ["y"] * 200)
    belief = replace(belief, weight=np.repeat([0.0, 2.0], [100, 100]))
    review = replace(review_of(), belief=belief)
    found = review_metrics(review, PAIRS, None)
    assert found["weight_zero"] == 100
    assert found["weight_effective"] == pytest.approx(0.5)
    assert found["gate_open"] == float(belief.verdict.open)
    assert found["agreement_low"] < found["agreement"] < 1
    assert found["label_errors"] == belief.error.value
    said = belief_text(review, settings)
    assert said["selection"].startswith("by external: it gives the labels ")
    assert said[SOURCES]["x"] == [*list(vars(belief.sources["x"]).values())]
    assert said[SOURCES]["x"][3] == 200
    assert belief_text(review_of(), settings) == {}


def test_no_answer_is_ranked_before_round_1():
    review = review_of()
    first = replace(review, size=replace(review.size, number=1))
    assert "accuracy_train" not in review_metrics(first, PAIRS, None)
