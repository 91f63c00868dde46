"""Arms with wrong labels: the tables of docs/language-model.md, from the stored runs.

Differences are paired by seed and prompt, against `dpo` with the same labels; intervals are the
middle 95% of bootstrap draws of prompts, of the mean over seeds, so they say nothing of other seeds
where there are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.smollm.analysis import cell
from benchmarks.smollm.page import fill, markdown
from benchmarks.smollm.task_report import mean, signed

BASE = "dpo"
RATE = 1e-4
"""The learning rate that stage 2 chose."""
AXOLOTL, TORCH = "axolotl", "torch"
"""What trains; lines that say nothing are of the former."""
WANTED = 5
"""Seeds that are asked for."""
Line = dict[str, Any]


def kind_of(line: Line) -> tuple[str, int, int, str]:
    """What arms must have in common to be compared: labels, pairs, epochs, and what trains."""
    return line["labels"], line["pairs"], line["epochs"], line.get("trainer", AXOLOTL)


def run_of(line: Line) -> tuple[Any, ...]:
    """What tells a run from all others."""
    return *kind_of(line), line["arm"], line["seed"], line["rate"]


def name_of(line: Line) -> str:
    """The arm of a run, with its learning rate if that is another than ``RATE``."""
    name = f"`{line['arm']}`"
    return name if line["rate"] == RATE else f"{name}, {line['rate']:g}"


def right(line: Line) -> np.ndarray:
    """Whether each held-out pair is ordered as by the reward, ties as half."""
    found: np.ndarray = (np.sign(np.array(line["margins"])) + 1) / 2
    return found


def row(lines: Sequence[Line], base: dict[int, Line]) -> list[str]:
    """The row of an arm, of its runs with one kind of labels."""
    paired = [line for line in lines if line["seed"] in base and line is not base[line["seed"]]]
    against = "–"
    if paired:
        gaps = [np.array(one["after"]) - np.array(base[one["seed"]]["after"]) for one in paired]
        against = f"{signed(mean(np.mean(gaps, axis=0)))} ({len(paired)})"
    gains = [np.array(line["after"]) - np.array(line["before"]) for line in lines]
    return [
        name_of(lines[0]),
        str(len(lines)),
        cell(mean(np.mean([right(line) for line in lines], axis=0))),
        signed(mean(np.mean(gains, axis=0))),
        against,
        f"{np.mean([np.mean(line['kl']) for line in lines]):.1f}",
        _reviews(lines),
        f"{np.mean([line['seconds'] for line in lines]) / 60:.0f}",
    ]


def _reviews(lines: Sequence[Line]) -> str:
    """AUC of the last review's margins and of what it thought right, means over runs."""
    said = []
    for name in ("margin", "right"):
        last = [line["review"][max(line["review"])] for line in lines if line["review"]]
        values = [one[name] for one in last if name in one]
        if values:
            said.append(f"{name} {np.mean(values):.2f}")
    return ", ".join(said) or "–"


def text(lines: Sequence[Line]) -> str:
    """The Markdown between the markers."""
    if not lines:
        return "No run is stored yet."
    heads = ["arm", "seeds", "accuracy", "reward, change", "reward, against `dpo` (seeds)"]
    heads += ["KL", "AUC of turned labels, last review", "minutes of a core"]
    out = []
    for kind in dict.fromkeys(map(kind_of, lines)):
        some = [line for line in lines if kind_of(line) == kind]
        base = {line["seed"]: line for line in some if name_of(line) == f"`{BASE}`"}
        arms = dict.fromkeys(map(name_of, some))
        rows = [row([line for line in some if name_of(line) == arm], base) for arm in arms]
        labels, pairs, epochs, trainer = kind
        size = f"{pairs} pairs, {'one epoch' if epochs == 1 else f'{epochs} epochs'}"
        size += ", without Axolotl" if trainer == TORCH else ""
        out += [f"**{labels}**, {size}", "", markdown(heads, rows), ""]
    seeds: dict[Any, set[int]] = {}
    for line in lines:
        seeds.setdefault((kind_of(line), name_of(line)), set()).add(line["seed"])
    if min(map(len, seeds.values())) < WANTED:
        out.append(f"Fewer than {WANTED} seeds are run of some arms: no verdict.")
    return "\n".join(out).rstrip()


def write_page(lines: Sequence[Line], page: Path) -> None:
    """Put the text between the markers of a page, and print it."""
    found = text(lines)
    print(found)
    if page.is_file():
        fill(page, "grid", found)
