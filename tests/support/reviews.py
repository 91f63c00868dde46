"""A review made by hand, and a tokenizer of letters."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from sera_plugin.data.candidates import BootstrappedPair, Candidate, Pool, Source
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import Composition
from sera_plugin.data.schedule import RoundSize
from sera_plugin.data.tables import ReviewTable
from sera_plugin.review.bootstrap import Bootstrapped
from sera_plugin.review.guard import Decision, Estimate, Signals
from sera_plugin.review.pairing import SampleStats, Shortfall
from sera_plugin.review.review import Review
from sera_plugin.review.selection import Choice, History
from sera_plugin.scoring.scorer import Phase

IDS = ("a", "b", "c", "d")


def logps(chosen, rejected, ids=IDS):
    return PairLogps(ids, np.array(chosen, dtype=float), np.array(rejected, dtype=float))


def table_of(kept):
    return ReviewTable(
        IDS,
        logps([0] * 4, [0] * 4),
        # Right, right, wrong, equal: 2 of 4.
        logps([3, 1, 0, 2], [1, 0, 4, 2]),
        np.array([2.0, 1.0, -4.0, 0.0]),
        np.array([1.5, 0.5, -2.5, -0.5]),
        np.array(kept),
        np.array([1.5, 0.5, -2.5, -0.5]),
        np.array([False, False, True, False]),
        np.array([2, 2, 0, 1], dtype=np.int32),
        right=np.array([0.9, 0.7, 0.3, np.nan]),
        weight=np.array([2.0, 1.0, 0.0, 1.0]),
    )


PAIRS = OfflinePairs(
    Dataset.from_dict({}),
    IDS,
    {example_id: row for row, example_id in enumerate(IDS)},
    np.array([5, 5, 5, 5]),
    np.array([10, 20, 30, 40]),
    np.array([1, 2, 3, 4]),
)
LONG = Candidate((1, 2, 3, 4), Source.POLICY, True, 2.0, -5.0, -7.0)
CUT = Candidate((5, 6), Source.POLICY, False, -1.0, -4.0, -3.0)
OFFLINE = Candidate((7,), Source.CHOSEN, True, 1.0, -2.0, -3.0)
STATS = SampleStats(answers=6, unique=0.5, finished=0.75, kl=1.25, set_aside=2)
POOLS = (Pool("a", (LONG, CUT, OFFLINE)), Pool("b", (OFFLINE, CUT)))


QUIET = Estimate(0.25, 0.1, 20)
DECISION = Decision(
    0.5, "so it is", Signals(QUIET, QUIET, QUIET, QUIET, QUIET, Estimate(np.nan, np.nan, 0))
)


def review_of(bootstrapped=True, evaluation=None):
    pairs = (
        BootstrappedPair("a", LONG, CUT, 0.5, POOLS[0]),
        BootstrappedPair("b", OFFLINE, CUT, 0.3, POOLS[1]),
    )
    found = (
        Bootstrapped(POOLS, pairs, 0.01, {Shortfall.DUPLICATES: 3}, 2, STATS, DECISION, 1)
        if bootstrapped
        else Bootstrapped((), (), 0.0, {}, 0, None)
    )
    table = table_of([True, True, False, False])
    return Review(
        size=RoundSize(3, 2, 4 if bootstrapped else 0, True),
        table=table,
        choice=Choice(table.score, np.array([0, 1, 3]), table.kept, table.flipped, 3),
        history=History.of([table.margin], [table.ensembled]),
        composition=Composition(("a", "b"), ("d", "c"), found.pairs, frozenset("c")),
        bootstrapped=found,
        evaluation={},
        evaluation_ratios=evaluation or {},
        scoring=Phase(4.0, 1000, 1200),
        generation=Phase(2.0, 300, 300),
    )


class Letters:
    """Decodes token n as the n-th letter."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return "".join(chr(ord("a") + i) for i in ids)
