"""An audit as a page: the margins, and the most suspicious pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from sera_plugin.commands.audit_table import Cut, cut_table
from sera_plugin.commands.report.figures import DROPPED, KEPT, bin_edges, histogram
from sera_plugin.commands.report.page import Answer, Explorer, Figure, Grid, Link, Page
from sera_plugin.commands.report.pairs import BUDGET, SUSPECT, choose, clipped, text_bytes
from sera_plugin.data.columns import TEXTS, RankedPairs

TRUSTED = "not suspect"
LIMIT = BUDGET + 1_200_000
"""Bytes of text: an audit has one list alone."""


def audit_page(
    table: pa.Table, found: Sequence[Cut], summary: Mapping[str, Any], truth: str | None
) -> Page:
    """The page of an audit.

    Args:
        table: the ranked table.
        found: its cuts.
        summary: what was audited with what.
        truth: column that says which labels are wrong, if there is one.
    """
    margins = table[RankedPairs.MARGIN].to_numpy()
    header, rows = cut_table(found)
    suspect = int((margins < 0).sum())
    return Page(
        title="SeRA audit",
        subtitle=f"{summary['config']} · policy {summary['policy']}",
        state=f"{table.num_rows:,} pairs",
        answers=_answers(table.num_rows, suspect, found, summary),
        notices=[],
        tiles=[
            ("pairs", f"{table.num_rows:,}"),
            ("suspect labels", f"{suspect:,}"),
            ("median margin", f"{float(np.nanmedian(margins)):.3f}"),
        ],
        grids=[
            Grid(
                "Cuts",
                "How many pairs go if the most suspicious ones are cut.",
                header,
                rows,
            )
        ],
        figures=[_margins(table, truth, summary["margin"])],
        explorers=[_explorer(table, truth)],
        settings=yaml.safe_dump(dict(summary), sort_keys=False, allow_unicode=True),
    )


def _answers(
    total: int, suspect: int, found: Sequence[Cut], summary: Mapping[str, Any]
) -> list[Answer]:
    text = (
        f"{suspect:,} of {total:,} labels ({suspect / total:.1%}): the policy prefers the "
        "completion that is labelled rejected (a negative margin)."
        if suspect
        else f"None of {total:,}: every margin that is a finite number is at least 0."
    )
    cut = next((cut for cut in found if cut.pairs == suspect), None)
    if cut is not None and cut.precision is not None:
        text += f" {cut.precision:.1%} of them are known to be wrong."
    return [
        Answer(
            "What was asked?",
            f"How much the policy {summary['policy']}, measured against {summary['reference']}, "
            "agrees with the labels; nothing was trained.",
        ),
        Answer(
            "Which labels are suspect?",
            text,
            Link("Read the suspect pairs", f"#pairs=&filter={SUSPECT}") if suspect else None,
        ),
        _advice(suspect, total, str(summary["config"])),
    ]


def _advice(suspect: int, total: int, config: str) -> Answer:
    question = "What to do?"
    if not 0 < suspect < total:
        return Answer(question, "The most suspicious pairs stand first in the list; read some.")
    return Answer(
        question,
        "Read some of the suspect pairs, then train on the rest.",
        command=f"axolotl sera audit {config} --keep {1 - suspect / total:.2f}",
        note="writes the rest as a dataset.",
    )


def _margins(table: pa.Table, truth: str | None, kind: str) -> Figure:
    margins = table[RankedPairs.MARGIN].to_numpy()
    parts = {"pairs": margins}
    if truth is not None:
        wrong = table[truth].to_numpy(zero_copy_only=False).astype(bool)
        parts = {truth: margins[wrong], "others": margins[~wrong]}
    return histogram(
        "margins",
        "Margins",
        "Left of 0 the policy, measured against its reference, prefers the rejected answer.",
        bin_edges([margins]),
        parts,
        dict(zip(parts, (KEPT,) if truth is None else (DROPPED, KEPT), strict=True)),
        f"margin, nats{' per token' if kind == 'mean' else ''}",
        0.0,
    )


def _explorer(table: pa.Table, truth: str | None) -> Explorer:
    margins = table[RankedPairs.MARGIN].to_numpy()
    chosen = choose(margins, text_bytes(table), LIMIT, None)
    note = (
        f"All {table.num_rows:,} pairs"
        if len(chosen) == table.num_rows
        else f"{len(chosen):,} of {table.num_rows:,} pairs, the most and the least suspicious and "
        "a random sample; all are in ranked.parquet and ranked.jsonl beside this page"
    )
    rows = [_row(row, truth) for row in table.take(pa.array(chosen)).to_pylist()]
    tags = [SUSPECT, TRUSTED, *([str(truth)] if truth is not None else [])]
    orders = ["most suspicious first", "least suspicious first"]
    return Explorer("pairs", "Pairs", f"{note}, the most suspicious first.", rows, tags, orders)


def _row(row: Mapping[str, Any], truth: str | None) -> dict[str, Any]:
    tags = [SUSPECT if row[RankedPairs.MARGIN] < 0 else TRUSTED]
    if truth is not None and row[truth]:
        tags.append(truth)
    return {
        "id": row[RankedPairs.EXAMPLE_ID],
        **{name: clipped(row[name]) for name in TEXTS},
        "tags": tags,
        "shown": tags,
        "numbers": [
            ("rank", row[RankedPairs.RANK]),
            ("margin", row[RankedPairs.MARGIN]),
            ("probability of the label", row[RankedPairs.PREFERENCE_PROBABILITY]),
            (
                "tokens",
                f"{row[RankedPairs.CHOSEN_TOKENS]} / {row[RankedPairs.REJECTED_TOKENS]}",
            ),
        ],
        "sort": [row[RankedPairs.RANK], -row[RankedPairs.RANK]],
        "details": [],
        "candidates": [],
    }
