"""What a run adds to the host's model card: its rounds, its reviews and the terms of its loss."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sera_plugin.data.columns import code, markdown
from sera_plugin.data.metrics import metrics_of
from sera_plugin.data.schedule import Schedule
from sera_plugin.training.run import Run
from sera_plugin.training.terms.term import described


def add_to_card(run: Run, summaries: Sequence[Mapping[str, float]], card: Path) -> None:
    """Append sections to a model card.

    Args:
        run: the run.
        summaries: numbers of the rounds so far.
        card: the host's model card.
    """
    sections = []
    if run.config.reviews:
        sections.append(f"## Rounds\n\n{rounds_table(run.schedule)}")
        reviews = [row for row in summaries if run.schedule.rounds[int(row["round"]) - 1].reviewed]
        if reviews:
            sections.append(f"## Reviews\n\n{reviews_table(reviews)}")
    if run.config.terms:
        loss = code(run.host.loss_types)
        table = markdown(("Term", "Settings", "Paper"), _terms(run))
        sections.append(f"## Loss\n\n{loss} with these terms, in this order:\n\n{table}")
    if sections:
        with card.open("a", encoding="utf-8") as file:
            file.write("".join(f"\n{section}\n" for section in sections))


def rounds_table(schedule: Schedule) -> str:
    """The planned pairs and updates of every round, in Markdown."""
    rows = [
        (
            str(size.number),
            "reviewed" if size.reviewed else "all of D",
            str(size.total),
            str(size.bootstrapped),
            str(updates),
        )
        for size, updates in zip(schedule.rounds, schedule.updates, strict=True)
    ]
    return markdown(("Round", "Data", "Pairs", "of them bootstrapped, at most", "Updates"), rows)


def reviews_table(reviews: Sequence[Mapping[str, float]]) -> str:
    """Numbers of reviewed rounds in Markdown, a line each."""
    names = {name for row in reviews for name in row} - {"round"}
    shown = [metric for metric in metrics_of(sorted(names)) if metric.title]
    rows = [
        (f"{row['round']:.0f}", *(m.text(row[m.name]) if m.name in row else "-" for m in shown))
        for row in reviews
    ]
    return markdown(("Round", *(metric.title for metric in shown)), rows)


def _terms(run: Run) -> Iterator[tuple[str, str, str]]:
    for term in described(run.config.terms):
        paper = term["paper"]
        yield (
            code([term["name"]]),
            code(f"{key}: {json.dumps(value)}" for key, value in term["settings"].items()),
            f"[{paper}](https://arxiv.org/abs/{paper})" if paper else "",
        )
