"""A run as a page: what it was started with, what every round did, and the pairs themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sera_plugin.commands.report.answers import answers
from sera_plugin.commands.report.bootstrapped import bootstrapped_pairs
from sera_plugin.commands.report.counts import Counts, counts, known
from sera_plugin.commands.report.page import Explorer, Grid, Page, write_page
from sera_plugin.commands.report.pairs import SUSPECT, offline_pairs, write_all
from sera_plugin.commands.report.reviews import Reviews
from sera_plugin.commands.report.run_figures import run_figures
from sera_plugin.commands.report.signals import signal_grid
from sera_plugin.data.metrics import SET_ASIDE, Metric, metrics_of
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
    counted = counts(run, reviews)
    explorers: list[Explorer] = []
    notices = _notices(run)
    rest = suspects = None
    if pairs is None:
        notices.append(
            "The run kept no pairs.parquet, so offline pairs are not listed; runs of this version "
            "of the plugin keep it."
        )
    elif reviews.numbers:
        threshold = known(run.reviewed[-1].summary, "threshold")
        shown = offline_pairs(pairs, reviews, threshold)
        explorers.append(shown.explorer)
        suspects = sum(SUSPECT in row["tags"] for row in shown.explorer.rows)
        if not shown.complete:
            rest = out.with_name(f"{out.stem}-pairs.parquet")
            notices.append(f"This page shows part of the pairs; all are in {rest.name} beside it.")
    made = bootstrapped_pairs(run.reviewed, [rows.again for rows in reviews.rows])
    if made is not None:
        explorers.append(made)
    page = Page(
        title="SeRA run",
        subtitle=f"{run.output_dir} · base model {run.settings.get('base_model', 'unknown')}",
        state=_state(run),
        answers=answers(run, reviews, counted, suspects),
        notices=notices,
        tiles=_tiles(run, counted),
        grids=_grids(run, reviews, counted),
        figures=run_figures(run, reviews, pairs, counted),
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


def _tiles(run: RunFiles, counted: Sequence[Counts]) -> list[tuple[str, str]]:
    found = [("offline pairs", f"{known(run.settings, 'pairs') or 0:,.0f}")]
    held_out = known(run.settings, "held_out")
    if held_out:
        found.append(("pairs held out", f"{held_out:,.0f}"))
    found.append(("rounds", f"{len(run.rounds)} of {run.planned}"))
    last: Mapping[str, Any] = run.reviewed[-1].summary if run.reviewed else {}
    if run.reviewed:
        of_round = next(entry for entry in reversed(counted) if entry.reviewed)
        last = {**last, **_own(of_round)}
    for metric in metrics_of(last):
        value = known(last, metric.name)
        if metric.label and value is not None:
            found.append((metric.label, metric.text(value, ",")))
    return found


def _own(entry: Counts) -> dict[str, float]:
    """The metrics of a round that the page counts itself, as runs of all versions have them."""
    names = ("kept", "bootstrapped", "filled")
    return {name: float(getattr(entry, name)) for name in names}


def _grids(run: RunFiles, reviews: Reviews, counted: Sequence[Counts]) -> list[Grid]:
    if not run.rounds:
        return []
    grids = [_main_table(run.rounds, counted), signal_grid(run, reviews), _decisions(run)]
    return [grid for grid in (*grids, _all_numbers(run.rounds)) if grid is not None]


def _main_table(rounds: Sequence[StoredRound], counted: Sequence[Counts]) -> Grid:
    summaries = [
        {**stored.summary, **_own(entry)} for stored, entry in zip(rounds, counted, strict=True)
    ]
    there = metrics_of(name for summary in summaries for name in summary)
    shown = [metric for metric in there if metric.title and metric.name != "round"]
    after = 1 + [metric.name for metric in shown].index("kept")
    header = [metric.title for metric in shown]
    rows = []
    for stored, entry, summary in zip(rounds, counted, summaries, strict=True):
        cells = [_text(metric, known(summary, metric.name)) for metric in shown]
        first = f"{stored.number}{'' if stored.reviewed else ' (all pairs)'}"
        rows.append([first, *cells[:after], f"{entry.dropped:,}", *cells[after:]])
    return Grid(
        "Rounds",
        "Kept and dropped are offline pairs; kept, bootstrapped and filled make up the round.",
        ["round", *header[:after], "dropped", *header[after:]],
        rows,
    )


def _text(metric: Metric, value: float | None) -> str:
    return "–" if value is None else metric.text(value, ",")


def _decisions(run: RunFiles) -> Grid | None:
    """What a guard or another part of the run has decided, in whatever form it was stored."""
    rows = [
        [f"{stored.number}", name, _plain(value)]
        for stored in run.rounds
        for name, value in stored.summary.items()
        if isinstance(value, (str, list, dict)) and name != SET_ASIDE
    ]
    if not rows:
        return None
    note = "What the run decided by itself, and why."
    header = ["round", "by", "decision"]
    return Grid("Decisions", note, header, rows, prose=header)


def _all_numbers(rounds: Sequence[StoredRound]) -> Grid:
    names = dict.fromkeys(name for stored in rounds for name in stored.summary if name != "round")
    meanings = {metric.name: metric.meaning.replace("`", "") for metric in metrics_of(names)}
    rows = [
        [name, *(_plain(stored.summary.get(name)) for stored in rounds), meanings.get(name, "")]
        for name in names
    ]
    header = ["metric", *(f"round {stored.number}" for stored in rounds), "meaning"]
    return Grid(
        "All metrics", "As in summary.json of each round.", header, rows, True, ("meaning",)
    )


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, (dict, list)):
        return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).strip()
    return str(value)
