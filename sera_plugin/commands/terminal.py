"""Tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sera_plugin.commands.audit_table import cut_table
from sera_plugin.commands.report.visible import visible
from sera_plugin.data.columns import TEXTS, RankedPairs
from sera_plugin.runtime.memory import GIB

if TYPE_CHECKING:
    from sera_plugin.commands.audit import Audit
    from sera_plugin.commands.plan import RoundPlan, RunPlan

SHOWN = 5
"""Pairs that an audit prints."""
CLIP = 90
"""Characters of a text in the terminal."""


def grid(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column stands left and the others right."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def show_audit(audit: Audit) -> None:
    """Print what an audit found."""
    console = Console()
    negative = sum(margin < 0 for margin in audit.table[RankedPairs.MARGIN].to_pylist())
    total = audit.table.num_rows
    console.print(
        f"{negative:,} of {total:,} labels ({negative / total:.1%}) are suspect: the policy prefers"
        " the rejected completion.",
        highlight=False,
    )
    console.print(grid("If the most suspicious pairs are cut", *cut_table(audit.cuts)))
    table = Table(title="Most suspicious", title_justify="left", show_lines=True)
    table.add_column(RankedPairs.MARGIN, justify="right")
    for name in TEXTS:
        table.add_column(name)
    for row in audit.table.slice(0, SHOWN).to_pylist():
        texts = [Text(_clipped(row[name])) for name in TEXTS]
        table.add_row(f"{row[RankedPairs.MARGIN]:.3f}", *texts)
    console.print(table)
    if audit.kept is not None:
        console.print(f"{audit.folder / 'kept.jsonl'}: {audit.kept:,} pairs", soft_wrap=True)
    console.print(f"{audit.folder / 'report.html'}", soft_wrap=True, highlight=False)


def _clipped(text: str) -> str:
    one_line = " ".join(text.split())
    return visible(one_line if len(one_line) <= CLIP else one_line[: CLIP - 1] + "…")


def show_plan(plan: RunPlan) -> None:
    """Print what a run would do and cost."""
    console, lengths = Console(), plan.lengths
    console.print(
        f"{lengths.pairs:,} pairs, prompts of {lengths.prompt:.0f} and answers of "
        f"{lengths.answer:.0f} tokens on average; {len(plan.rounds)} rounds, "
        f"{plan.updates:,} updates on {plan.processes} "
        f"{'process' if plan.processes == 1 else 'processes'}.",
        highlight=False,
        soft_wrap=True,
    )
    header = (
        "round", "kept", "new", "updates", "learning rate", "prompts", "sampled tokens", "at most",
        "scored tokens", "forwards", "trained tokens", "time",
    )  # fmt: skip
    console.print(grid("Rounds", header, [_round(entry) for entry in plan.rounds]))
    if any(entry.refined for entry in plan.rounds):
        tokens = ", ".join(f"{entry.refined:,}" for entry in plan.rounds)
        console.print(
            f"For Δ, tokens scored with the quality prompt, by round: {tokens}.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"Before round 1 the reference scores {plan.opening_tokens:,} tokens. Forwards are scoring "
        "batches of each GPU. Sampled tokens assume answers as long as the offline ones; at most "
        "max_new_tokens each.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_memory(plan))
    total = _time(plan.seconds)
    console.print(
        f"Estimated time: {total}."
        if plan.seconds is not None
        else "No time is estimated: give --measured RUN_DIR, or --scoring, --sampling and "
        "--training in tokens per second.",
        highlight=False,
        soft_wrap=True,
    )


def _round(entry: RoundPlan) -> list[str]:
    rates = "–" if entry.rates is None else f"{entry.rates[0]:.2g} → {entry.rates[1]:.2g}"
    size = entry.size
    counts = (size.kept, size.bootstrapped, entry.updates)
    tokens = (entry.prompts, entry.sampled, entry.most_sampled, entry.scored, entry.forwards)
    return [
        str(size.number),
        *(f"{count:,}" for count in counts),
        rates,
        *(f"{count:,}" for count in tokens),
        f"{entry.trained:,}",
        _time(entry.seconds),
    ]


def _memory(plan: RunPlan) -> Table:
    model = plan.model
    rows = []
    for stage, memory in plan.memory.items():
        parts = (
            memory.policy, memory.gradients, memory.optimizer, memory.reference, memory.training,
            memory.gathered_for_sampling,
        )  # fmt: skip
        name = f"ZeRO-{stage}" if stage else "DDP"
        mark = " (this config)" if stage == plan.stage else ""
        rows.append([f"{name}{mark}", *(f"{part / GIB:,.2f}" for part in parts)])
    title = (
        f"GiB per GPU without activations and caches: {model.parameters:,} parameters, "
        f"{model.trainable:,} trainable"
    )
    header = ("", "policy", "gradients", "optimizer", "reference", "sum", "gathered sampling")
    return grid(title, header, rows)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_json(plan: RunPlan) -> str:
    """The plan as JSON: tokens, bytes and seconds."""
    return json.dumps(asdict(plan), indent=2)
