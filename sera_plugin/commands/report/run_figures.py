"""The figures of a run, from its summaries, reviews and log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sera_plugin.commands.report.counts import Counts, known
from sera_plugin.commands.report.figures import (
    BOOTSTRAPPED,
    FILLED,
    KEPT,
    OTHERS,
    STATES,
    bars,
    bin_edges,
    boxes,
    histogram,
    layout,
    lines,
)
from sera_plugin.commands.report.page import Figure, Link
from sera_plugin.commands.report.reviews import Reviews
from sera_plugin.commands.report.signals import margin_unit, signal_figures
from sera_plugin.data.columns import Pairs, Rows
from sera_plugin.data.metrics import QUANTILES, label_of
from sera_plugin.data.reader import RunFiles

POINTS = 3000
"""Most points of a scatter plot; of all of them together, three times as many."""
SYMBOLS = {"kept": "circle", "filled": "square", "dropped": "x"}
CURVE = 2000
"""Most points of a training curve."""


def run_figures(
    run: RunFiles, reviews: Reviews, pairs: pa.Table | None, counted: Sequence[Counts]
) -> list[Figure]:
    """All figures that the run has data for, in the order of the page."""
    found: list[Figure | None] = [*_margins(run, reviews), *signal_figures(run, reviews)]
    found += [*_movement(run, reviews, pairs is not None), _quality(run), _change(run), _drift(run)]
    found += [_quantiles(run), _sizes(counted), _lengths(run, reviews, pairs)]
    found += [*_phases(run), *_curves(run.log())]
    return [figure for figure in found if figure is not None]


def _margins(run: RunFiles, reviews: Reviews) -> Iterator[Figure]:
    edges = bin_edges(reviews.ensembled)
    for stored, values, rows in zip(run.reviewed, reviews.ensembled, reviews.rows, strict=True):
        yield histogram(
            f"margins-{stored.number}",
            f"Margins before round {stored.number}",
            "Ensembled margins of all offline pairs; the line is the smallest kept one. Left of 0 "
            "the policy prefers the rejected answer.",
            edges,
            rows.by_state(values),
            STATES,
            f"margin, {margin_unit(run)}",
            known(stored.summary, "threshold"),
        )


def _movement(run: RunFiles, reviews: Reviews, listed: bool) -> Iterator[Figure]:
    """Each pair's margin in one review against the next."""
    most = min(POINTS, 3 * POINTS // max(1, len(reviews.numbers) - 1))
    for place in range(1, len(reviews.numbers)):
        before, after = reviews.own[place - 1], reviews.own[place]
        good = np.flatnonzero(np.isfinite(before) & np.isfinite(after))
        if len(good) > most:
            good = np.sort(np.random.default_rng(0).choice(good, most, replace=False))
        traces: list[dict[str, Any]] = []
        said = []
        for state, mask in reviews.rows[place].states().items():
            rows = good[mask[good]]
            if not len(rows):
                continue
            rose = int((after[rows] > before[rows]).sum())
            said.append(f"{state}: of {len(rows):,} margins {rose:,} rose.")
            marker = {"color": STATES[state], "size": 6, "opacity": 0.6, "symbol": SYMBOLS[state]}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": state,
                    "x": np.round(before[rows], 4).tolist(),
                    "y": np.round(after[rows], 4).tolist(),
                    "customdata": [reviews.ids[row] for row in rows],
                    "marker": marker,
                    "hovertemplate": "%{x:.3f} → %{y:.3f}<br>%{customdata}<extra></extra>",
                }
            )
        first, then = reviews.numbers[place - 1], reviews.numbers[place]
        sample = f" A sample of {most:,} pairs." if len(before) > most else ""
        unit = margin_unit(run)
        yield Figure(
            f"moves-{then}",
            f"Margins before round {first} and before round {then}",
            f"A point is a pair{'; click one to read it below' if listed else ''}.{sample}",
            " ".join(said),
            traces,
            layout(f"before round {first}, {unit}", f"before round {then}, {unit}"),
            Link("The list of pairs, those whose margins fell most first", "#pairs=&order=2")
            if listed
            else None,
        )


def _by_round(run: RunFiles, names: Mapping[str, str]) -> dict[str, tuple[list[int], list[float]]]:
    series = {}
    for label, name in names.items():
        found = ((stored.number, known(stored.summary, name)) for stored in run.rounds)
        there = [(at, value) for at, value in found if value is not None]
        series[label] = ([at for at, _ in there], [value for _, value in there])
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
        share=True,
        xaxis=_whole(run),
    )


def _change(run: RunFiles) -> Figure | None:
    return lines(
        "change",
        "How much changes",
        "Overlap of the kept sets of consecutive reviews, and variety of the sampled answers.",
        _by_round(run, {label_of(name): name for name in ("kept_overlap", "unique_answer_ratio")}),
        "round",
        "share",
        share=True,
        xaxis=_whole(run),
        yaxis={"rangemode": "tozero"},
    )


def _drift(run: RunFiles) -> Figure | None:
    return lines(
        "drift",
        "Drift",
        "Estimated KL divergence of the policy from the reference, over what it sampled.",
        _by_round(run, {label_of("kl_policy_samples"): "kl_policy_samples"}),
        "round",
        "nats",
        xaxis=_whole(run),
        yaxis={"rangemode": "tozero"},
    )


def _whole(run: RunFiles) -> dict[str, Any]:
    """An axis of rounds: a tick for each, or fewer if they are many."""
    return {"dtick": max(1, -(-len(run.rounds) // 12))}


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
        f"margin, {margin_unit(run)}",
        xaxis=_whole(run),
    )


def _sizes(counted: Sequence[Counts]) -> Figure | None:
    names = {"kept": KEPT, "bootstrapped": BOOTSTRAPPED, "filled": FILLED}
    return bars(
        "sizes",
        "What the rounds train on",
        "Rows of each round: kept offline pairs, bootstrapped pairs, and rows that fill the places "
        "of pairs that fell short.",
        [f"round {entry.number}" for entry in counted],
        {name: [getattr(entry, name) for entry in counted] for name in names},
        "rows",
        colours=tuple(names.values()),
    )


_SIDES = {
    "chosen": (Pairs.CHOSEN_TOKENS, Rows.CHOSEN_IDS),
    "rejected": (Pairs.REJECTED_TOKENS, Rows.REJECTED_IDS),
}


def _lengths(run: RunFiles, reviews: Reviews, pairs: pa.Table | None) -> Figure | None:
    groups: dict[str, np.ndarray] = {}
    if pairs is not None:
        states = {"offline": np.ones(pairs.num_rows, dtype=bool)}
        if run.reviewed:
            place = reviews.rows_of(pairs[Pairs.EXAMPLE_ID].to_pylist())
            states = {name: mask[place] for name, mask in reviews.rows[-1].states().items()}
        for side, (column, _) in _SIDES.items():
            tokens = pairs[column].to_numpy()
            groups |= {f"{side} {state}": tokens[mask] for state, mask in states.items()}
    if run.reviewed and (run.reviewed[-1].folder / Rows.file).is_file():
        rows = run.reviewed[-1].table(Rows, Rows.CHOSEN_IDS, Rows.REJECTED_IDS)
        for side, (_, ids) in _SIDES.items():
            lengths = pc.list_value_length(rows[ids]).drop_null().to_numpy()
            groups[f"{side} bootstrapped"] = lengths
    return boxes(
        "lengths",
        "Lengths by source",
        "Tokens of the completions of the last round: offline pairs by what became of them, and "
        "bootstrapped pairs. Boxes are quarters, whiskers 5 and 95%.",
        groups,
        "tokens",
    )


_PHASES = {"scoring": "scoring", "sampling": "generation", "training": "training"}


def _phases(run: RunFiles) -> Iterator[Figure | None]:
    def by_phase(stem: str) -> dict[str, list[float | None]]:
        return {
            label: [known(stored.summary, f"{stem}_{name}") for stored in run.rounds]
            for label, name in _PHASES.items()
        }

    rounds = [f"round {stored.number}" for stored in run.rounds]
    yield bars(
        "seconds", "Time by phase", "Seconds of wall time that each round took.",
        rounds, by_phase("seconds"), "seconds", colours=OTHERS,
    )  # fmt: skip
    yield bars(
        "speed", "Tokens per second by phase", "Without padding, over all processes.",
        rounds, by_phase("tokens_per_second"), "tokens per second", "group", OTHERS,
    )  # fmt: skip


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


def _curve(log: Sequence[Mapping[str, Any]], name: str) -> tuple[list[Any], list[float]]:
    found = ((entry.get("step"), known(entry, name)) for entry in log)
    points = [(step, value) for step, value in found if value is not None]
    stride = max(1, -(-len(points) // CURVE))
    return [x for x, _ in points[::stride]], [y for _, y in points[::stride]]
