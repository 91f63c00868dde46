"""The figures of a run, from its summaries, reviews and log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sera_plugin.commands.report.figures import (
    DROPPED,
    FILLED,
    FRESH,
    KEPT,
    bars,
    bin_edges,
    boxes,
    histogram,
    layout,
    lines,
)
from sera_plugin.commands.report.page import Figure
from sera_plugin.commands.report.reviews import Reviews
from sera_plugin.data.columns import Pairs, Rows
from sera_plugin.data.metrics import QUANTILES, label_of
from sera_plugin.data.reader import RunFiles, StoredRound

POINTS = 3000
"""Most points of a scatter plot."""
CURVE = 2000
"""Most points of a training curve."""


def run_figures(run: RunFiles, reviews: Reviews, pairs: pa.Table | None) -> list[Figure]:
    """All figures that the run has data for, in the order of the page."""
    found: list[Figure | None] = [*_margins(run, reviews), *_movement(reviews)]
    found += [_quality(run), _change(run), _quantiles(run), _sizes(run)]
    found += [_lengths(run, reviews, pairs), _seconds(run), _speed(run)]
    found += _curves(run.log())
    return [figure for figure in found if figure is not None]


def _margins(run: RunFiles, reviews: Reviews) -> Iterator[Figure]:
    edges = bin_edges(reviews.ensembled)
    for stored, values, kept in zip(run.reviewed, reviews.ensembled, reviews.kept, strict=True):
        yield histogram(
            f"margins-{stored.number}",
            f"Margins before round {stored.number}",
            "Ensembled margins of all offline pairs; the line is the smallest kept one. Left of 0 "
            "the policy prefers the rejected answer.",
            edges,
            {"kept": values[kept], "dropped": values[~kept]},
            (KEPT, DROPPED),
            stored.summary.get("threshold"),
        )


def _movement(reviews: Reviews) -> Iterator[Figure]:
    """Each pair's margin in one review against the next."""
    for place in range(1, len(reviews.numbers)):
        before, after = reviews.own[place - 1], reviews.own[place]
        good = np.flatnonzero(np.isfinite(before) & np.isfinite(after))
        if len(good) > POINTS:
            good = np.sort(np.random.default_rng(0).choice(good, POINTS, replace=False))
        kept = reviews.kept[place]
        traces: list[dict[str, Any]] = []
        for label, colour, mask in (("kept", KEPT, kept), ("dropped", DROPPED, ~kept)):
            rows = good[mask[good]]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": label,
                    "x": np.round(before[rows], 4).tolist(),
                    "y": np.round(after[rows], 4).tolist(),
                    "customdata": [reviews.ids[row] for row in rows],
                    "marker": {"color": colour, "size": 5, "opacity": 0.55},
                    "hovertemplate": "%{x:.3f} → %{y:.3f}<br>%{customdata}<extra></extra>",
                }
            )
        first, then = reviews.numbers[place - 1], reviews.numbers[place]
        sample = f" A sample of {POINTS:,} pairs." if len(before) > POINTS else ""
        yield Figure(
            f"moves-{then}",
            f"Margins before round {first} and before round {then}",
            f"A point is a pair; click one to read it below.{sample}",
            traces,
            layout(f"before round {first}", f"before round {then}"),
        )


def _by_round(run: RunFiles, names: Mapping[str, str]) -> dict[str, tuple[list[Any], list[Any]]]:
    series = {}
    for label, name in names.items():
        there = [s for s in run.rounds if isinstance(s.summary.get(name), (int, float))]
        series[label] = ([s.number for s in there], [s.summary[name] for s in there])
    return series


def _quality(run: RunFiles) -> Figure | None:
    names = {
        name.removeprefix("accuracy_"): name
        for stored in run.rounds
        for name in stored.summary
        if name.startswith("accuracy_")
    }
    return lines(
        "accuracy",
        "Pairs ordered as labelled",
        "Share of pairs whose chosen answer has the larger log-ratio: offline pairs (train) and "
        "evaluation pairs.",
        _by_round(run, names),
        "round",
        "share",
        xaxis={"dtick": 1},
        yaxis={"tickformat": ".0%"},
    )


def _change(run: RunFiles) -> Figure | None:
    shown = ("kept_overlap", "unique_answer_ratio", "kl_policy_samples")
    names = {label_of(name): name for name in shown}
    figure = lines(
        "change",
        "How much changes",
        "Overlap of the kept sets of consecutive reviews, variety of the sampled answers, and the "
        "estimated KL divergence of the policy from the reference (right axis, nats).",
        _by_round(run, names),
        "round",
        "share",
        xaxis={"dtick": 1},
        yaxis={"tickformat": ".0%", "rangemode": "tozero"},
        yaxis2={"overlaying": "y", "side": "right", "title": {"text": "nats"}, "showgrid": False},
        margin={"r": 56},
    )
    if figure is None:
        return None
    on_the_right = {"yaxis": "y2", "line": {"dash": "dot"}}
    kl = label_of("kl_policy_samples")
    traces = [{**t, **on_the_right} if t["name"] == kl else dict(t) for t in figure.data]
    return replace(figure, data=traces)


def _quantiles(run: RunFiles) -> Figure | None:
    names = {f"{q}%": f"margin_q{q:02d}" for q in reversed(QUANTILES)}
    if len(run.reviewed) < 2:
        return None
    return lines(
        "quantiles",
        "Margins from review to review",
        "Quantiles of the offline pairs' own margins at each review.",
        _by_round(run, names),
        "round",
        "margin",
        xaxis={"dtick": 1},
    )


def _round_names(rounds: Sequence[StoredRound]) -> list[str]:
    return [f"round {stored.number}" for stored in rounds]


def _sizes(run: RunFiles) -> Figure | None:
    parts = {
        label_of(name): [stored.summary.get(name) for stored in run.rounds]
        for name in ("kept", "bootstrapped", "shortfall")
    }
    return bars(
        "sizes",
        "What the rounds train on",
        "Pairs per round by where they come from.",
        _round_names(run.rounds),
        parts,
        "pairs",
        colours=(KEPT, FRESH, FILLED),
    )


_SIDES = {
    "chosen": (Pairs.CHOSEN_TOKENS, Rows.CHOSEN_IDS),
    "rejected": (Pairs.REJECTED_TOKENS, Rows.REJECTED_IDS),
}


def _lengths(run: RunFiles, reviews: Reviews, pairs: pa.Table | None) -> Figure | None:
    groups: dict[str, np.ndarray] = {}
    if pairs is not None:
        if run.reviewed:
            mask = reviews.kept[-1][reviews.rows_of(pairs[Pairs.EXAMPLE_ID].to_pylist())]
            for side, (column, _) in _SIDES.items():
                tokens = pairs[column].to_numpy()
                groups[f"{side}<br>kept"] = tokens[mask]
                groups[f"{side}<br>dropped"] = tokens[~mask]
        else:
            for side, (column, _) in _SIDES.items():
                groups[f"{side}<br>offline"] = pairs[column].to_numpy()
    if run.reviewed and (run.reviewed[-1].folder / Rows.file).is_file():
        rows = run.reviewed[-1].table(Rows, Rows.CHOSEN_IDS, Rows.REJECTED_IDS)
        for side, (_, ids) in _SIDES.items():
            groups[f"{side}<br>new"] = pc.list_value_length(rows[ids]).drop_null().to_numpy()
    return boxes(
        "lengths",
        "Lengths by source",
        "Tokens of the answers in the last review: offline pairs kept and dropped, and new pairs. "
        "Boxes are quarters, whiskers 5 and 95%.",
        groups,
        "tokens",
    )


_PHASES = {"scoring": "scoring", "sampling": "generation", "training": "training"}


def _seconds(run: RunFiles) -> Figure | None:
    return bars(
        "seconds",
        "Time by phase",
        "Seconds of wall time that each round took.",
        _round_names(run.rounds),
        {
            label: [stored.summary.get(f"seconds_{name}") for stored in run.rounds]
            for label, name in _PHASES.items()
        },
        "seconds",
    )


def _speed(run: RunFiles) -> Figure | None:
    return bars(
        "speed",
        "Tokens per second by phase",
        "Without padding, over all processes.",
        _round_names(run.rounds),
        {
            label: [stored.summary.get(f"tokens_per_second_{name}") for stored in run.rounds]
            for label, name in _PHASES.items()
        },
        "tokens per second",
        "group",
    )


def _curves(log: Sequence[Mapping[str, Any]]) -> Iterator[Figure | None]:
    yield lines(
        "loss", "Loss", "Training and evaluation loss as the trainer logged them.",
        {"training": _curve(log, "loss"), "evaluation": _curve(log, "eval_loss")},
        "update", "loss",
    )  # fmt: skip
    yield lines(
        "rewards", "Rewards", "Implicit rewards of the training batches.",
        {
            name: _curve(log, f"rewards/{name}") for name in ("chosen", "rejected", "margins")
        },
        "update", "reward",
    )  # fmt: skip
    yield lines(
        "rate", "Learning rate", "As used by each logged update.",
        {"learning rate": _curve(log, "learning_rate")}, "update", "",
        yaxis={"exponentformat": "e"},
    )  # fmt: skip
    yield lines(
        "norm", "Gradient norm", "Before clipping.",
        {"gradient norm": _curve(log, "grad_norm")}, "update", "",
    )  # fmt: skip


def _curve(log: Sequence[Mapping[str, Any]], name: str) -> tuple[list[Any], list[Any]]:
    points = [
        (entry.get("step"), float(entry[name]))
        for entry in log
        if isinstance(entry.get(name), (int, float, str)) and _is_number(entry[name])
    ]
    stride = max(1, -(-len(points) // CURVE))
    return [x for x, _ in points[::stride]], [y for _, y in points[::stride]]


def _is_number(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except ValueError:
        return False
