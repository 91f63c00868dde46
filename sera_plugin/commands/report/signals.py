"""The signals of a review: what the guard looks at, and what ``selection.signals`` measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sera_plugin.commands.report.counts import known
from sera_plugin.commands.report.figures import STATES, bin_edges, histogram, number
from sera_plugin.commands.report.page import Figure, Grid
from sera_plugin.commands.report.reviews import SIGNAL, Reviews
from sera_plugin.data.metrics import SOURCES, metrics_of
from sera_plugin.data.reader import RunFiles

LIMITS = {
    "guard_drift": "max_drift",
    "guard_spread_ratio": "max_spread",
    "guard_length_correlation": "max_length_correlation",
    "guard_agreement": "min_agreement",
    "guard_accuracy": "min_accuracy",
}
"""Metrics of the guard's signals, and the keys of ``sera.bootstrap.guard`` that limit them."""
SOURCES_SHOWN = 20
"""Sources of labels that the report names."""
UNLIMITED = ("guard_spread",)
"""Metrics of its signals that have no limit of their own."""


@dataclass(frozen=True)
class Limit:
    """A limit of the guard.

    Attributes:
        key: of ``sera.bootstrap.guard``.
        value: in the unit of the signal.
    """

    key: str
    value: float

    def passed(self, signal: float) -> bool:
        """Whether a signal is past it, whatever its sampling error."""
        if self.key.startswith("min_"):
            return signal < self.value
        return (abs(signal) if "correlation" in self.key else signal) > self.value

    def text(self, *, share: bool) -> str:
        words = "at least" if self.key.startswith("min_") else "at most"
        sign = ", of either sign" if "correlation" in self.key else ""
        return f"{words} {number(self.value, share=share)}{sign} ({self.key})"


def margin_unit(run: RunFiles) -> str:
    """The unit of the run's margins."""
    selection = block(run.settings, "sera", "selection")
    return "nats per token" if selection.get("margin") == "mean" else "nats"


def limit_of(run: RunFiles, metric: str) -> Limit | None:
    """The limit of a signal of the guard; None if it has none, or the guard is off."""
    guard, key = block(run.settings, "sera", "bootstrap", "guard"), LIMITS.get(metric, "")
    value = known(guard, key)
    return None if value is None or guard.get("enabled") is False else Limit(key, value)


def block(settings: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """A block of ``run.json`` by its keys; empty where there is none."""
    found: Any = settings
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def signal_grid(run: RunFiles, reviews: Reviews) -> Grid | None:
    """All signals by round with units and limits, or None if none was measured."""
    rows = [*_of_guard(run), *_of_labels(run), *_of_selection(run, reviews)]
    if not rows:
        return None
    guard = block(run.settings, "sera", "bootstrap", "guard")
    note = (
        "The guard is off, so its signals have no limits."
        if guard.get("enabled") is False
        else "The guard lets fewer bootstrapped pairs in where a signal is past its limit by more "
        "than its sampling error."
    )
    if any(reviews.signals):
        note += (
            " Signals of selection are given as the median of all offline pairs, with 5% and 95% "
            "in brackets; they have no limits, a rule may use them."
        )
    rounds = (f"round {number}" for number in reviews.numbers)
    prose = ("unit", "limit", "meaning")
    return Grid("Signals", note, ["signal", *prose[:2], *rounds, prose[2]], rows, prose=prose)


def _of_guard(run: RunFiles) -> Iterator[list[str]]:
    measured = [stored.summary for stored in run.reviewed]
    for metric in metrics_of((*LIMITS, *UNLIMITED)):
        values = [known(summary, metric.name) for summary in measured]
        if all(value is None for value in values):
            continue
        share, limit = metric.unit == "share", limit_of(run, metric.name)
        cells = []
        for value in values:
            past = value is not None and limit is not None and limit.passed(value)
            shown = "–" if value is None else metric.text(value)
            cells.append(f"{shown} ▲ past the limit" if past else shown)
        said = limit.text(share=share) if limit else "none"
        yield [metric.name, metric.unit or "–", said, *cells, metric.meaning.replace("`", "")]


def _of_labels(run: RunFiles) -> Iterator[list[str]]:
    """The estimated share of wrong labels, of all pairs and by source, and what the gate heard."""
    measured = [stored.summary for stored in run.reviewed]
    shares = [
        [known(summary, f"label_errors{end}") for end in ("", "_low", "_high")]
        for summary in measured
    ]
    for metric in metrics_of(("label_errors", "agreement", "gate_open")):
        values = [known(summary, metric.name) for summary in measured]
        if all(value is None for value in values):
            continue
        cells = ["–" if value is None else metric.text(value) for value in values]
        if metric.name == "label_errors":
            cells = [_share(share) for share in shares]
        meaning = metric.meaning.replace("`", "")
        yield [metric.name, metric.unit or "–", "none", *cells, meaning]
    by_source = [block(summary, SOURCES) for summary in measured]
    names = list(dict.fromkeys(name for found in by_source for name in found))[:SOURCES_SHOWN]
    for name in names:
        cells = [_share(found.get(name)) for found in by_source]
        meaning = "ε of the pairs with this value of selection.sources"
        yield [f"label_errors of {name}", "share", "none", *cells, meaning]


def _share(found: Any) -> str:
    """A share with both ends of its interval; a dash for what no run has written."""
    if not isinstance(found, list) or len(found) < 3:
        return "–"
    if not all(isinstance(one, (int, float)) for one in found[:3]):
        return "–"
    value, low, high = (number(float(one), share=True) for one in found[:3])
    return f"{value} ({low} to {high})"


def _of_selection(run: RunFiles, reviews: Reviews) -> Iterator[list[str]]:
    for name in _names(reviews):
        cells = [_median(signals.get(name)) for signals in reviews.signals]
        meaning = "a signal of selection.signals"
        yield [f"{SIGNAL}{name}", _unit(name, run), "none", *cells, meaning]


def _names(reviews: Reviews) -> Sequence[str]:
    return list(dict.fromkeys(name for signals in reviews.signals for name in signals))


def _unit(name: str, run: RunFiles) -> str:
    built_in = {"margin": margin_unit(run), "length": "tokens"}
    return built_in.get(name, "its own")


def _median(values: np.ndarray | None) -> str:
    finite = np.zeros(0) if values is None else values[np.isfinite(values)]
    if not len(finite):
        return "–"
    low, middle, high = np.percentile(finite, [5, 50, 95]).tolist()
    return f"{number(middle)} ({number(low)} to {number(high)})"


def signal_figures(run: RunFiles, reviews: Reviews) -> Iterator[Figure]:
    """The signals of selection in the last review that measured them, kept against dropped."""
    for place, name in enumerate(_names(reviews)):
        last = max(i for i, signals in enumerate(reviews.signals) if name in signals)
        values, unit = reviews.signals[last][name], _unit(name, run)
        yield histogram(
            f"signal-{place + 1}",
            f"Signal {name} before round {reviews.numbers[last]}",
            f"Of all offline pairs; unit: {unit}.",
            bin_edges([values]),
            reviews.rows[last].by_state(values),
            STATES,
            f"{SIGNAL}{name}, {unit}",
        )
