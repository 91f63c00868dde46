"""Which pairs a page shows, within its size, and the file beside it that holds all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sera_plugin.commands.report.page import Explorer
from sera_plugin.commands.report.reviews import SIGNAL, Reviews
from sera_plugin.data.columns import TEXTS, Margins, Pairs, Rows
from sera_plugin.runtime.errors import RunError
from sera_plugin.runtime.files import replacing

SUSPECT, FILLED = "suspect", "filled"
"""Tags of offline pairs: a label that the last review doubts, and a place filled in any round."""
BUDGET = 2_200_000
"""Bytes of text in the list of offline pairs."""
CUT = 4000
"""Characters of a text on the page; the rest is counted."""
ROW = 260
"""Bytes of a row beside its texts, about."""
ROUND = 70
"""Bytes of a row for every review, about."""


@dataclass(frozen=True)
class Shown:
    """The list of pairs, and whether all of them are on the page."""

    explorer: Explorer
    complete: bool


def clipped(text: str) -> dict[str, Any]:
    """The text as a page holds it: at most ``CUT`` characters, and how many more there are."""
    found: dict[str, Any] = {"text": text[:CUT]}
    if len(text) > CUT:
        found["more"] = len(text) - CUT
    return found


def choose(scores: np.ndarray, sizes: np.ndarray, budget: int, line: float | None) -> np.ndarray:
    """Rows to show, int64, rising: the lowest, the highest, those at the line, and a sample.

    They are taken in turns until the next one would pass the budget.

    Args:
        scores: shape (n,); what is not a finite number counts as lowest.
        sizes: bytes of each row.
        budget: most bytes.
        line: score of special interest, or None.
    """
    if int(sizes.sum()) <= budget:
        return np.arange(len(scores))
    known = np.where(np.isfinite(scores), scores, -np.inf)
    order = np.argsort(known, kind="stable")
    ways = [order, order[::-1], np.random.default_rng(0).permutation(len(scores))]
    if line is not None:
        ways.append(np.argsort(np.abs(known - line), kind="stable"))
    taken: dict[int, None] = {}
    used, places = 0, [iter(way.tolist()) for way in ways]
    while True:
        for place in places:
            row = next(row for row in place if row not in taken)
            used += int(sizes[row])
            if used > budget:
                return np.array(sorted(taken), dtype=np.int64)
            taken[row] = None


def text_bytes(pairs: pa.Table, names: Sequence[str] = TEXTS) -> np.ndarray:
    """Bytes of each pair on a page, about, int64."""
    # Characters take up to 4 bytes each, and a control character 6 as JSON.
    sizes = [np.minimum(pc.binary_length(pairs[name]).to_numpy(), 4 * CUT) for name in names]
    found: np.ndarray = np.sum(sizes, axis=0).astype(np.int64) + ROW
    return found


def offline_pairs(pairs: pa.Table, reviews: Reviews, threshold: float | None) -> Shown:
    """The offline pairs of a run with their margins at every review.

    Args:
        pairs: ``pairs.parquet``.
        reviews: at least one.
        threshold: smallest kept margin of the last review.
    """
    rows = reviews.rows_of(pairs[Pairs.EXAMPLE_ID].to_pylist())
    last = reviews.ensembled[-1][rows]
    sizes = text_bytes(pairs) + len(reviews.numbers) * (ROUND + 9 * len(reviews.signals[-1]))
    chosen = choose(last, sizes, BUDGET, threshold)
    moved = reviews.own[-1] - reviews.own[0]
    names = list(dict.fromkeys(name for signals in reviews.signals for name in signals))
    masks = [rows.states() for rows in reviews.rows]
    shown = [
        _row(pair, _Place(reviews, masks, names, int(row)), moved)
        for pair, row in _taken(pairs, rows, chosen)
    ]
    complete = len(chosen) == pairs.num_rows
    note = (
        f"All {pairs.num_rows:,} offline pairs, the most negative margins first: where the policy "
        "contradicts the label most."
        if complete
        else f"{len(chosen):,} of {pairs.num_rows:,} offline pairs: the most negative and the "
        "largest margins, those at the threshold, and a random sample. Search and filters look at "
        "these; all pairs are in the file beside this page."
    )
    orders = ["most negative margin first", "largest margin first"]
    if len(reviews.numbers) > 1:
        orders += ["margin fell most", "margin rose most"]
    tags = [SUSPECT, FILLED]
    tags += [
        f"{s} in round {n}" for n in reversed(reviews.numbers) for s in ("dropped", "kept", FILLED)
    ]
    tags += [
        f"swapped in round {n}"
        for n, swapped in zip(reviews.numbers, reviews.swapped, strict=True)
        if swapped.any()
    ]
    signals = [f"{SIGNAL}{name}" for name in names]
    believed = ["label right", "weight"] if reviews.believed else []
    columns = ["round", "in the round", "margin", "ensembled margin", *signals, *believed]
    return Shown(Explorer("pairs", "Offline pairs", note, shown, tags, orders, columns), complete)


def _taken(
    pairs: pa.Table, rows: np.ndarray, chosen: np.ndarray
) -> Iterator[tuple[Mapping[str, Any], int]]:
    return zip(pairs.take(pa.array(chosen)).to_pylist(), rows[chosen], strict=True)


@dataclass(frozen=True)
class _Place:
    """A pair in the reviews: its row, the states of all pairs and the names of all signals."""

    reviews: Reviews
    states: Sequence[Mapping[str, np.ndarray]]
    names: Sequence[str]
    row: int

    def tags(self) -> list[list[str]]:
        """What became of the pair in each round; a kept pair may fill a place as well."""
        reviews, row = self.reviews, self.row
        found = []
        for place, states in enumerate(self.states):
            of_round = {state: None for state, mask in states.items() if mask[row]}
            if reviews.rows[place].filled[row]:
                of_round[FILLED] = None
            if reviews.swapped[place][row]:
                of_round["swapped"] = None
            found.append(list(of_round))
        return found

    def details(self, tags: Sequence[Sequence[str]]) -> list[list[Any]]:
        """A row for every review."""
        reviews = self.reviews
        return [
            [
                number,
                ", ".join(tags[place]),
                self._value(reviews.own[place]),
                self._value(reviews.ensembled[place]),
                *(self._value(reviews.signals[place].get(name)) for name in self.names),
                *(
                    self._value(found[place])
                    for found in (reviews.right, reviews.weight)
                    if reviews.believed
                ),
            ]
            for place, number in enumerate(reviews.numbers)
        ]

    def _value(self, values: np.ndarray | None) -> float | None:
        return None if values is None else round(float(values[self.row]), 4)


def _row(pair: Mapping[str, Any], at: _Place, moved: np.ndarray) -> dict[str, Any]:
    reviews, tags = at.reviews, at.tags()
    last, change = float(reviews.ensembled[-1][at.row]), float(moved[at.row])
    named = [
        [f"{tag} in round {number}" for tag in of_round]
        for number, of_round in zip(reviews.numbers, tags, strict=True)
    ]
    suspect = [SUSPECT] if reviews.suspect[at.row] else []
    filled = [FILLED] if any(FILLED in of_round for of_round in tags) else []
    return {
        "id": pair[Pairs.EXAMPLE_ID],
        **{name: clipped(pair[name]) for name in TEXTS},
        "tags": [*suspect, *filled, *chain.from_iterable(named)],
        "shown": [*suspect, *named[-1]],
        "numbers": [
            (f"ensembled margin before round {reviews.numbers[-1]}", round(last, 4)),
            ("tokens", f"{pair[Pairs.CHOSEN_TOKENS]} / {pair[Pairs.REJECTED_TOKENS]}"),
        ],
        "sort": [last, -last, *([change, -change] if len(reviews.numbers) > 1 else [])],
        "details": at.details(tags),
        "candidates": [],
    }


def write_all(pairs: pa.Table, reviews: Reviews, path: Path) -> None:
    """Write every offline pair with its margins and masks of all reviews.

    Raises:
        RunError: if the file can't be written.
    """
    rows = reviews.rows_of(pairs[Pairs.EXAMPLE_ID].to_pylist())
    for place, number in enumerate(reviews.numbers):
        for name, values in (
            (Margins.MARGIN, reviews.own[place]),
            (Margins.ENSEMBLED_MARGIN, reviews.ensembled[place]),
            (Margins.KEPT, reviews.rows[place].kept),
            (Rows.FILLED, reviews.rows[place].filled),
        ):
            pairs = pairs.append_column(f"{name}_round_{number}", pa.array(values[rows]))
        for name, found in ((Margins.RIGHT, reviews.right), (Margins.WEIGHT, reviews.weight)):
            known = found[place] if found else None
            if known is not None:
                pairs = pairs.append_column(f"{name}_round_{number}", pa.array(known[rows]))
    try:
        with replacing(path) as file:
            pq.write_table(pairs, file, compression="zstd")
    except OSError as error:
        raise RunError(f"{path} can't be written ({error.strerror or error}).") from error
