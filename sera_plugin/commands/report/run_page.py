"""A run as a page: what it was started with, what every round did, and the pairs themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sera_plugin.commands.report.bootstrapped import bootstrapped_pairs
from sera_plugin.commands.report.page import Explorer, Grid, Page, write_page
from sera_plugin.commands.report.pairs import offline_pairs, write_all
from sera_plugin.commands.report.reviews import Reviews
from sera_plugin.commands.report.run_figures import run_figures
from sera_plugin.data.metrics import Metric, metrics_of
from sera_plugin.data.reader import RunFiles, StoredRound


@dataclass(frozen=True)
class Written:
    """What ``write_report`` wrote.

    Attributes:
        page: the HTML file.
        size: its bytes.
        rest: the file beside it with all pairs, if the page shows only some.
    """

    page: Path
    size: int
    rest: Path | None


def write_report(run: RunFiles, out: Path) -> Written:
    """Write the report of a run to ``out``.

    Raises:
        RunError: one sentence.
    """
    reviews, pairs = Reviews.of(run), run.pairs()
    explorers: list[Explorer] = []
    notices = _notices(run)
    rest = None
    if pairs is None:
        notices.append(
            "The run kept no pairs.parquet, so offline pairs are not listed; runs of this version "
            "of the plugin keep it."
        )
    elif reviews.numbers:
        threshold = run.reviewed[-1].summary.get("threshold")
        shown = offline_pairs(pairs, reviews, threshold)
        explorers.append(shown.explorer)
        if not shown.complete:
            rest = out.with_name(f"{out.stem}-pairs.parquet")
            notices.append(f"This page shows part of the pairs; all are in {rest.name} beside it.")
    made = bootstrapped_pairs(run.reviewed)
    if made is not None:
        explorers.append(made)
    page = Page(
        title="SeRA run",
        subtitle=f"{run.output_dir} · base model {run.settings.get('base_model', 'unknown')}",
        state=_state(run),
        notices=notices,
        tiles=_tiles(run),
        grids=_grids(run),
        figures=run_figures(run, reviews, pairs),
        explorers=explorers,
        settings=yaml.safe_dump(dict(run.settings), sort_keys=False, allow_unicode=True),
    )
    size = write_page(page, out)
    if rest is not None and pairs is not None:
        write_all(pairs, reviews, rest)
    return Written(out, size, rest)


def _state(run: RunFiles) -> str:
    if run.finished:
        return "finished"
    trained = sum("seconds_training" in stored.summary for stored in run.rounds)
    return f"{trained} of {run.planned} rounds trained"


def _notices(run: RunFiles) -> list[str]:
    found = []
    if not run.rounds:
        found.append("No round is finished yet; the page fills as the run goes on.")
    elif not run.reviewed:
        found.append("No review has taken place yet; only warm-up rounds have been trained.")
    if run.being_written:
        names = ", ".join(map(str, run.being_written))
        found.append(f"Round {names} is not complete on disk and is left out.")
    return found


def _tiles(run: RunFiles) -> list[tuple[str, str]]:
    found = [("offline pairs", f"{run.settings.get('pairs', 0):,}")]
    found.append(("rounds", f"{len(run.rounds)} of {run.planned}"))
    last: Mapping[str, Any] = run.reviewed[-1].summary if run.reviewed else {}
    for metric in metrics_of(last):
        if metric.label and isinstance(last[metric.name], (int, float)):
            found.append((metric.label, metric.text(last[metric.name], ",")))
    return found


def _grids(run: RunFiles) -> list[Grid]:
    grids = []
    if run.rounds:
        grids.append(_main_table(run.rounds))
    notes = _decisions(run)
    if notes is not None:
        grids.append(notes)
    if run.rounds:
        grids.append(_all_numbers(run.rounds))
    return grids


def _main_table(rounds: Sequence[StoredRound]) -> Grid:
    there = metrics_of(name for stored in rounds for name in stored.summary)
    shown = [metric for metric in there if metric.title and metric.name != "round"]
    return Grid(
        "Rounds",
        "",
        ["round", *(metric.title for metric in shown)],
        [
            [
                f"{stored.number}{'' if stored.reviewed else ' (all pairs)'}",
                *(_text(metric, stored.summary.get(metric.name)) for metric in shown),
            ]
            for stored in rounds
        ],
    )


def _text(metric: Metric, value: Any) -> str:
    return metric.text(value, ",") if isinstance(value, (int, float)) else "–"


def _decisions(run: RunFiles) -> Grid | None:
    """What a guard or another part of the run has decided, in whatever form it was stored."""

    def decides(name: str, value: Any) -> bool:
        return name.startswith("guard") or isinstance(value, (str, list, dict))

    rounds = [s for s in run.rounds if any(decides(*item) for item in s.summary.items())]
    names = dict.fromkeys(
        name for stored in rounds for name, value in stored.summary.items() if decides(name, value)
    )
    # Sentences first, then the numbers behind them.
    order = sorted(names, key=lambda name: isinstance(rounds[-1].summary.get(name), (int, float)))
    if not order:
        return None
    return Grid(
        "Decisions",
        "What the run decided by itself, and the numbers behind it.",
        ["", *(f"round {stored.number}" for stored in rounds)],
        [[name, *(_plain(stored.summary.get(name)) for stored in rounds)] for name in order],
    )


def _all_numbers(rounds: Sequence[StoredRound]) -> Grid:
    names = dict.fromkeys(name for stored in rounds for name in stored.summary if name != "round")
    meanings = {metric.name: metric.meaning.replace("`", "") for metric in metrics_of(names)}
    rows = [
        [name, *(_plain(stored.summary.get(name)) for stored in rounds), meanings.get(name, "")]
        for name in names
    ]
    header = ["metric", *(f"round {stored.number}" for stored in rounds), ""]
    return Grid("All metrics", "As in summary.json of each round.", header, rows, folded=True)


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, (dict, list)):
        return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).strip()
    return str(value)
