"""Bootstrapped pairs with all their candidates, as a list on a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sera_plugin.commands.report.page import Explorer
from sera_plugin.commands.report.pairs import ROW, choose, clipped
from sera_plugin.data.reader import StoredRound
from sera_plugin.runtime.errors import RunError

BUDGET = 1_400_000
"""Bytes of text in the list of bootstrapped pairs."""
ROLES = {
    "policy": "sampled",
    "reference": "sampled from the reference",
    "offline_chosen": "offline chosen",
    "offline_rejected": "offline rejected",
}


@dataclass(frozen=True)
class _Place:
    """Where a bootstrapped pair stands on disk."""

    stored: StoredRound
    start: int
    size: int
    margin: float


def bootstrapped_pairs(rounds: Sequence[StoredRound]) -> Explorer | None:
    """The new pairs of all rounds, or None if there are none.

    Raises:
        RunError: if a file is damaged.
    """
    places = [place for stored in rounds for place in _places(stored)]
    if not places:
        return None
    margins = np.array([place.margin for place in places])
    sizes = np.array([place.size + 2 * ROW for place in places])
    shown = [_row(places[i]) for i in choose(margins, sizes, BUDGET, None).tolist()]
    files = "round-NN/bootstrapped.jsonl"
    note = (
        f"All {len(places):,} new pairs, made from the policy's own answers."
        if len(shown) == len(places)
        else f"{len(shown):,} of {len(places):,} new pairs: the smallest and largest differences "
        f"in reward and a random sample. All are in {files} of the run."
    )
    numbers = sorted({place.stored.number for place in places}, reverse=True)
    tags = [f"round {number}" for number in numbers]
    tags += [f"{side} {name}" for side in ("chosen:", "rejected:") for name in ROLES.values()]
    orders = ["largest difference in reward first", "smallest first"]
    return Explorer("new", "Bootstrapped pairs", note, shown, tags, orders)


def _places(stored: StoredRound) -> Iterator[_Place]:
    if not stored.fresh_path.is_file():
        return
    start = 0
    with open(stored.fresh_path, "rb") as file:
        for line in file:
            pair = _parsed(line, stored)
            yield _Place(stored, start, len(line), float(pair.get("margin") or 0.0))
            start += len(line)


def _parsed(line: bytes, stored: StoredRound) -> dict[str, Any]:
    try:
        pair = json.loads(line)
    except ValueError as error:
        raise RunError(f"{stored.fresh_path} can't be read ({error}).") from error
    if not isinstance(pair, dict) or not {"prompt", "chosen", "rejected"} <= pair.keys():
        raise RunError(f"{stored.fresh_path} was not written by a SeRA run.")
    return pair


def _row(place: _Place) -> dict[str, Any]:
    with open(place.stored.fresh_path, "rb") as file:
        file.seek(place.start)
        pair = _parsed(file.read(place.size), place.stored)
    return {
        "id": str(pair.get("example_id", "")),
        **{name: clipped(str(pair[name])) for name in ("prompt", "chosen", "rejected")},
        "tags": [
            f"round {place.stored.number}",
            *(f"{side}: {_source(pair.get(f'{side}_source'))}" for side in ("chosen", "rejected")),
        ],
        "numbers": [
            ("difference in reward", pair.get("margin")),
            ("reward of chosen", pair.get("reward_chosen")),
            ("of rejected", pair.get("reward_rejected")),
        ],
        "sort": [-place.margin, place.margin],
        "candidates": sorted(
            (_candidate(found, pair) for found in pair.get("candidates") or ()),
            key=lambda candidate: -(candidate["reward"] or 0.0),
        ),
    }


def _candidate(found: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
    roles = []
    for side in ("chosen", "rejected"):
        if found.get("text") == pair[side] and found.get("source") == pair.get(f"{side}_source"):
            roles.append(side)
    return {
        **clipped(str(found.get("text", ""))),
        "source": _source(found.get("source")),
        "finished": bool(found.get("finished", True)),
        "tokens": found.get("tokens"),
        "log_ratio": found.get("log_ratio"),
        "reward": found.get("reward"),
        "roles": roles,
    }


def _source(name: Any) -> str:
    return ROLES.get(str(name), str(name))
