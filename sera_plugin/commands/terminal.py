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
from sera_plugin.runtime.tables import side_by_side

if TYPE_CHECKING:
    from sera_plugin.commands.audit import Audit
    from sera_plugin.commands.plan import RoundPlan, RunPlan
    from sera_plugin.training.costs import Memory

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
    console, lengths = Console(highlight=False), plan.lengths
    held_out = f" ({lengths.held_out:,} more are held out)" if lengths.held_out else ""
    console.print(
        f"{lengths.pairs:,} pairs{held_out}, prompts of {lengths.prompt:.0f} and answers of "
        f"{lengths.answer:.0f} tokens on average; {len(plan.rounds)} rounds, "
        f"{plan.updates:,} updates on {plan.processes} "
        f"{'process' if plan.processes == 1 else 'processes'}."
    )
    refined = any(entry.refined for entry in plan.rounds)
    rounds = {str(entry.size.number): _round(entry, refined) for entry in plan.rounds}
    console.print(*side_by_side("Rounds", "round", rounds, console.width))
    console.print(
        f"Before round 1 the reference scores {plan.opening_tokens:,} tokens. Sampled tokens are "
        "those of answers as long as the offline ones; at most max_new_tokens each."
    )
    title = (
        f"GiB per GPU without activations and caches: {plan.model.parameters:,} parameters, "
        f"{plan.model.trainable:,} trainable; this config is {_stage(plan.stage)}"
    )
    stages = {_stage(stage): _memory(memory) for stage, memory in plan.memory.items()}
    console.print(*side_by_side(title, "", stages, console.width))
    console.print(
        f"Estimated time: {_time(plan.seconds)}. {plan.speed.note}"
        if plan.seconds is not None
        else "No time is estimated: give --measured RUN_DIR, or --scoring, --sampling and "
        "--training in tokens per second."
    )


def _round(entry: RoundPlan, refined: bool) -> dict[str, str]:
    first, last = entry.rates or (None, None)
    return {
        "offline pairs kept": f"{entry.size.kept:,}",
        "bootstrapped pairs": f"{entry.size.bootstrapped:,}",
        "updates": f"{entry.updates:,}",
        "first learning rate": "–" if first is None else f"{first:.2g}",
        "last learning rate": "–" if last is None else f"{last:.2g}",
        "prompts sampled": f"{entry.prompts:,}",
        "tokens sampled": f"{entry.sampled:,}",
        "tokens sampled, at most": f"{entry.most_sampled:,}",
        "tokens scored": f"{entry.scored:,}",
        **({"tokens scored for Δ": f"{entry.refined:,}"} if refined else {}),
        "scoring batches of a GPU": f"{entry.forwards:,}",
        "tokens trained": f"{entry.trained:,}",
        "time": _time(entry.seconds),
    }


def _stage(stage: int) -> str:
    return f"ZeRO-{stage}" if stage else "DDP"


def _memory(memory: Memory) -> dict[str, str]:
    parts = {
        "policy": memory.policy,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "reference": memory.reference,
        "sum": memory.training,
        "more while sampling gathers": memory.gathered_for_sampling,
    }
    return {name: f"{part / GIB:,.2f}" for name, part in parts.items()}


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_json(plan: RunPlan) -> str:
    """The plan as JSON: tokens, bytes and seconds."""
    return json.dumps(asdict(plan), indent=2)
