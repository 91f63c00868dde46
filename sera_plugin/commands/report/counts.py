"""What every round did to the data, counted: kept, dropped, filled and bootstrapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from sera_plugin.commands.report.reviews import Reviews
from sera_plugin.data.reader import RunFiles


@dataclass(frozen=True)
class Counts:
    """A round in numbers; kept + bootstrapped + filled are its rows.

    Attributes:
        number: from 1 on.
        reviewed: whether a review composed it.
        kept: offline pairs in it, each once.
        dropped: offline pairs that it does not train on.
        bootstrapped: bootstrapped pairs in it, each once.
        filled: rows in the place of pairs that fell short.
        filled_negative: offline pairs that fill with a negative margin.
    """

    number: int
    reviewed: bool
    kept: int
    dropped: int
    bootstrapped: int
    filled: int
    filled_negative: int


def counts(run: RunFiles, reviews: Reviews) -> tuple[Counts, ...]:
    """The rounds on disk in numbers, in order."""
    return tuple(_counts(run, reviews))


def _counts(run: RunFiles, reviews: Reviews) -> Iterator[Counts]:
    total = int(known(run.settings, "pairs") or 0)
    for stored in run.rounds:
        if not stored.reviewed:
            filled = int(known(stored.summary, "filled") or 0)
            kept = int(known(stored.summary, "kept") or total)
            yield Counts(stored.number, False, kept, max(0, total - kept), 0, filled, 0)
            continue
        place = reviews.numbers.index(stored.number)
        rows, margin = reviews.rows[place], reviews.ensembled[place]
        turned = np.where(reviews.swapped[place], -margin, margin)
        yield Counts(
            number=stored.number,
            reviewed=True,
            kept=int(rows.kept.sum()),
            dropped=int(rows.states()["dropped"].sum()),
            bootstrapped=rows.bootstrapped,
            filled=rows.fillers,
            filled_negative=int((rows.filled & (turned < 0)).sum()),
        )


def known(values: Mapping[str, Any], name: str) -> float | None:
    """A number by its name, also one in quotes; None if it is missing or is no finite number."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if isfinite(found) else None


def data_in_words(found: Sequence[Counts], total: int) -> str:
    """What happened to the data, round by round, as a sentence.

    Of many reviewed rounds the first and the last are told, and the range of those between.
    """
    if not found:
        return "No round is finished yet, so nothing has happened to the data."
    clauses = []
    warm = [entry for entry in found if not entry.reviewed]
    if warm:
        aside = max(entry.dropped for entry in warm)
        less = f" but {aside:,}, whose log-probs are not finite numbers" if aside else ""
        clauses.append(f"{_rounds(warm)} trained on all {total:,} offline pairs{less}")
    reviewed = [entry for entry in found if entry.reviewed]
    groups = [[entry] for entry in reviewed]
    if len(reviewed) > 4:
        groups = [reviewed[:1], reviewed[1:-1], reviewed[-1:]]
    for place, group in enumerate(groups):
        clauses.append(_clause(group, f" of {total:,}" if not place else ""))
    sentence = "; ".join(clauses) + "."
    return sentence[0].upper() + sentence[1:]


def _clause(group: Sequence[Counts], of: str) -> str:
    def span(name: str) -> str:
        values = [getattr(entry, name) for entry in group]
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    filled = f"filled {span('filled')} place{'' if span('filled') == '1' else 's'}"
    if any(entry.filled for entry in group):
        with_negative = span("filled_negative") if any(e.filled_negative for e in group) else "none"
        filled += f" ({with_negative} of them with negative margins)"
    return (
        f"{_rounds(group)} kept {span('kept')}{of} offline pairs, dropped {span('dropped')}, "
        f"added {span('bootstrapped')} bootstrapped pairs and {filled}"
    )


def _rounds(group: Sequence[Counts]) -> str:
    first, last = group[0].number, group[-1].number
    return f"round {first}" if first == last else f"rounds {first} to {last}"
