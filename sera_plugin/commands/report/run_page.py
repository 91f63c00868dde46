"""A run as a page: what it was started with, what every round did, and the pairs themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sera_plugin.commands.report.fresh import bootstrapped_pairs
from sera_plugin.commands.report.page import Explorer, Grid, Page, write_page
from sera_plugin.commands.report.pairs import offline_pairs, write_all
from sera_plugin.commands.report.reviews import Reviews
from sera_plugin.commands.report.run_figures import run_figures
from sera_plugin.data.reader import RunFiles, StoredRound

MAIN = {
    "kept": ("kept", "{:,.0f}"),
    "bootstrapped": ("new", "{:,.0f}"),
    "shortfall": ("filled", "{:,.0f}"),
    "margin_mean": ("mean margin", "{:.3f}"),
    "threshold": ("threshold", "{:.3f}"),
    "accuracy_train": ("as labelled", "{:.1%}"),
    "accuracy_eval": ("as labelled, eval", "{:.1%}"),
    "kept_overlap": ("overlap", "{:.1%}"),
    "kl_policy_samples": ("KL", "{:.3f}"),
    "seconds_scoring": ("scoring s", "{:,.1f}"),
    "seconds_generation": ("sampling s", "{:,.1f}"),
    "seconds_training": ("training s", "{:,.1f}"),
}
"""Columns of the table of rounds: metric to heading and format."""


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
    fresh = bootstrapped_pairs(run.reviewed)
    if fresh is not None:
        explorers.append(fresh)
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
    for name, label, form in (
        ("accuracy_train", "pairs ordered as labelled", "{:.1%}"),
        ("accuracy_eval", "evaluation pairs ordered as labelled", "{:.1%}"),
        ("kept", "offline pairs kept", "{:,.0f}"),
        ("bootstrapped", "new pairs in the last round", "{:,.0f}"),
        ("kept_overlap", "of the kept pairs were kept before", "{:.1%}"),
        ("kl_policy_samples", "KL to the reference, nats (estimate)", "{:.2f}"),
    ):
        if isinstance(last.get(name), (int, float)):
            found.append((label, form.format(last[name])))
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
    used = [name for name in MAIN if any(name in stored.summary for stored in rounds)]
    return Grid(
        "Rounds",
        "",
        ["round", *(MAIN[name][0] for name in used)],
        [
            [
                f"{stored.number}{'' if stored.reviewed else ' (all pairs)'}",
                *(_number(stored.summary.get(name), MAIN[name][1]) for name in used),
            ]
            for stored in rounds
        ],
    )


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
    rows = [[name, *(_plain(stored.summary.get(name)) for stored in rounds)] for name in names]
    header = ["metric", *(f"round {stored.number}" for stored in rounds)]
    return Grid("All metrics", "As in summary.json of each round.", header, rows, folded=True)


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) else "–"


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, (dict, list)):
        return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).strip()
    return str(value)
