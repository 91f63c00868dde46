"""Bootstrapped pairs with all their candidates, as a list on a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sera_plugin.commands.report.page import Explorer
from sera_plugin.commands.report.pairs import FILLED, ROW, choose, clipped
from sera_plugin.data.candidates import Source
from sera_plugin.data.checked import bootstrapped_pair
from sera_plugin.data.columns import TEXTS, BootstrappedPairs, Competitors
from sera_plugin.data.reader import StoredRound

BUDGET = 1_400_000
"""Bytes of text in the list of bootstrapped pairs."""
_SIDES = {
    BootstrappedPairs.CHOSEN: BootstrappedPairs.CHOSEN_SOURCE,
    BootstrappedPairs.REJECTED: BootstrappedPairs.REJECTED_SOURCE,
}
"""Columns of the two answers, and of who wrote them."""


@dataclass(frozen=True)
class _Place:
    """Where a bootstrapped pair stands on disk."""

    stored: StoredRound
    start: int
    size: int
    margin: float


def bootstrapped_pairs(
    rounds: Sequence[StoredRound], again: Sequence[frozenset[str]]
) -> Explorer | None:
    """The bootstrapped pairs of all rounds, or None if there are none.

    Args:
        rounds: the reviewed rounds.
        again: example ids of those that fill places in each of the rounds.

    Raises:
        RunError: if a file is damaged.
    """
    places = [place for stored in rounds for place in _places(stored)]
    filling = {stored.number: ids for stored, ids in zip(rounds, again, strict=True)}
    if not places:
        return None
    margins = np.array([place.margin for place in places])
    sizes = np.array([place.size + 2 * ROW for place in places])
    chosen = (places[i] for i in choose(margins, sizes, BUDGET, None).tolist())
    shown = [_row(place, filling[place.stored.number]) for place in chosen]
    note = (
        f"All {len(places):,} bootstrapped pairs, made from the policy's own answers."
        if len(shown) == len(places)
        else f"{len(shown):,} of {len(places):,} bootstrapped pairs: the smallest and largest "
        "differences in reward and a random sample. All are in "
        f"round-NN/{BootstrappedPairs.file} of the run."
    )
    numbers = sorted({place.stored.number for place in places}, reverse=True)
    tags = [f"round {number}" for number in numbers] + [FILLED] * any(again)
    tags += [f"{side}: {source.label}" for side in _SIDES for source in Source]
    orders = ["largest difference in reward first", "smallest first"]
    return Explorer("new", "Bootstrapped pairs", note, shown, tags, orders)


def _places(stored: StoredRound) -> Iterator[_Place]:
    if not stored.bootstrapped_path.is_file():
        return
    start = 0
    with open(stored.bootstrapped_path, "rb") as file:
        for line in file:
            pair = bootstrapped_pair(line, stored.bootstrapped_path)
            yield _Place(stored, start, len(line), float(pair.get(BootstrappedPairs.MARGIN) or 0.0))
            start += len(line)


def _row(place: _Place, filling: frozenset[str]) -> dict[str, Any]:
    with open(place.stored.bootstrapped_path, "rb") as file:
        file.seek(place.start)
        pair = bootstrapped_pair(file.read(place.size), place.stored.bootstrapped_path)
    sides = (f"{side}: {_label(pair.get(source))}" for side, source in _SIDES.items())
    filled = [FILLED] if str(pair.get(BootstrappedPairs.EXAMPLE_ID)) in filling else []
    tags = [f"round {place.stored.number}", *filled, *sides]
    return {
        "id": str(pair.get(BootstrappedPairs.EXAMPLE_ID, "")),
        **{name: clipped(str(pair[name])) for name in TEXTS},
        "tags": tags,
        "shown": tags,
        "numbers": [
            ("difference in reward", pair.get(BootstrappedPairs.MARGIN)),
            ("reward of chosen", pair.get(BootstrappedPairs.REWARD_CHOSEN)),
            ("of rejected", pair.get(BootstrappedPairs.REWARD_REJECTED)),
        ],
        "sort": [-place.margin, place.margin],
        "details": [],
        "candidates": sorted(
            (_candidate(found, pair) for found in pair.get(BootstrappedPairs.CANDIDATES) or ()),
            key=lambda candidate: -(candidate["reward"] or 0.0),
        ),
    }


def _candidate(found: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
    text, source = found.get(Competitors.TEXT), found.get(Competitors.SOURCE)
    return {
        **clipped(str(text or "")),
        "source": _label(source),
        "finished": bool(found.get(Competitors.FINISHED, True)),
        "tokens": found.get(Competitors.TOKENS),
        "log_ratio": found.get(Competitors.LOG_RATIO),
        "reward": found.get(Competitors.REWARD),
        "roles": [
            side.value
            for side, writer in _SIDES.items()
            if text == pair[side] and source == pair.get(writer)
        ],
    }


def _label(source: Any) -> str:
    name = str(source)
    return Source(name).label if name in set(Source) else name
