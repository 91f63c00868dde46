"""Every rule of selection fills its rounds: the parts add up, and no doubted pair fills a place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from datasets import Dataset
from reviews import review_of

from sera_plugin.config import SelectionConfig
from sera_plugin.config.parts import RULES
from sera_plugin.config.selection import Fill
from sera_plugin.data.candidates import BootstrappedPair, Candidate, Pool, Source
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import RoundRow, compose, rows_of
from sera_plugin.data.schedule import RoundSize
from sera_plugin.data.tables import ReviewTable
from sera_plugin.review.metrics import review_metrics
from sera_plugin.review.review import Review
from sera_plugin.review.selection import History, choose

COUNT, KEEP, PLANNED = 40, 28, 12
IDS = tuple(f"{number:02}" for number in range(COUNT))
# The policy doubts 18 of 40, and four have no margin.
MARGIN = np.linspace(-1.7, 2.2, COUNT)
MARGIN[[3, 11, 20, 30]] = np.nan
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"rule": name} for name in RULES.names},
    "threshold": {"rule": "threshold", "threshold": 0.5},
    "threshold that nothing passes": {"rule": "threshold", "threshold": 99.0},
    "band": {"rule": "band", "band": [20, 90]},
    "flip": {"on_negative": "flip", "negative_reviews": 1, "negative_deviations": 0},
    "drop": {"on_negative": "drop", "negative_reviews": 1, "negative_deviations": 0},
    "few": {"keep": 0.2},
}
BEST = Candidate((7, 8), Source.POLICY, True, 2.0, -3.0, -5.0)
WORST = Candidate((6,), Source.POLICY, True, -1.0, -4.0, -3.0)


def composed(settings: SelectionConfig, made: int) -> tuple[Review, list[RoundRow]]:
    """A review with ``made`` bootstrapped pairs of 12 planned ones, and the rows of its round."""
    history = History.of([MARGIN], [MARGIN])
    size = RoundSize(2, round(settings.planned[0] * COUNT), PLANNED, True)
    choice = choose(
        *(IDS, history, size.kept, settings),
        external=np.linspace(1.0, -1.0, COUNT),
        loss_difference=np.cos(np.arange(COUNT)),
        round_number=2,
        seed=7,
    )
    logps = PairLogps(IDS, MARGIN, np.zeros(COUNT))
    table = ReviewTable(
        *(IDS, logps, logps, MARGIN, MARGIN, choice.kept, choice.scores, choice.flipped),
        np.ones(COUNT, dtype=np.int32),
    )
    pairs = [
        BootstrappedPair(IDS[i], BEST, WORST, 0.3, Pool(IDS[i], (BEST, WORST))) for i in range(made)
    ]
    composition = compose(
        *([IDS[i] for i in choice.ranked], size.kept, PLANNED, pairs),
        {IDS[i] for i in np.flatnonzero(choice.flipped)},
        table.doubted,
        settings.fill,
    )
    review = replace(
        review_of(), size=size, table=table, choice=choice, history=history, composition=composition
    )
    return review, rows_of(composition, 7, 2, previous_reference=False)


PAIRS = OfflinePairs(
    Dataset.from_dict({}),
    IDS,
    {example_id: row for row, example_id in enumerate(IDS)},
    *[np.ones(COUNT, dtype=np.int64)] * 3,
)


@pytest.mark.parametrize("made", [0, 5, PLANNED])
@pytest.mark.parametrize("fill", get_args(Fill))
@pytest.mark.parametrize("name", SETTINGS)
def test_the_parts_add_up_to_the_rows(name: str, fill: str, made: int) -> None:
    review, rows = composed(SelectionConfig(**SETTINGS[name], fill=fill), made)
    found = review_metrics(review, PAIRS, None)
    assert len(rows) == review.size.total
    filled = [row for row in rows if row.filled]
    once = [row for row in rows if not row.filled]
    offline = [row for row in once if row.chosen_ids is None]
    table, margin = review.table, dict(zip(IDS, MARGIN, strict=True))
    assert {row.example_id for row in offline} == {IDS[i] for i in np.flatnonzero(table.kept)}
    assert found["kept"] == len(offline) == table.kept.sum()
    assert found["bootstrapped"] == len(once) - len(offline) == made
    assert found["filled"] == len(filled)
    assert found["kept"] + found["bootstrapped"] + found["filled"] == len(rows)
    turned = {row.example_id for row in rows if row.flipped}
    assert found["flipped"] == len(turned)
    assert found["shortfall"] == PLANNED - made
    # What is trained on has a margin, and what fills has none that is negative.
    trained = [row for row in rows if row.chosen_ids is None]
    assert np.isfinite([margin[row.example_id] for row in trained]).all()
    doubted = [
        row
        for row in filled
        if row.chosen_ids is None and (margin[row.example_id] < 0) != row.flipped
    ]
    assert len(doubted) == found["filled_negative"] == 0
    if fill != "next_best":
        assert {row.example_id for row in trained} == {row.example_id for row in offline}


def test_what_the_rule_keeps_out_and_what_is_dropped_never_fills() -> None:
    for name in ("threshold", "drop", "band"):
        review, rows = composed(SelectionConfig(**SETTINGS[name], fill="next_best"), 0)
        passed = {IDS[i] for i in np.flatnonzero(np.isfinite(review.choice.scores))}
        assert {row.example_id for row in rows} <= passed
        assert any(row.filled for row in rows)


def test_a_round_that_holds_doubted_pairs_alone_says_so() -> None:
    review, _ = composed(SelectionConfig(rule="bottom", keep=0.2, fill="kept"), 0)
    found = review_metrics(review, PAIRS, None)
    assert found["filled_negative"] == found["filled"] == PLANNED
