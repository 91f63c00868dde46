"""Arms with wrong labels: the tables of docs/language-model.md, from the stored runs.

Differences are paired by seed and prompt, against `dpo` with the same labels; intervals are the
middle 95% of bootstrap draws of prompts, of the mean over seeds. Where there are five seeds or more
these are drawn too; where there are fewer an interval says nothing of other seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.smollm import analysis
from benchmarks.smollm.analysis import cell
from benchmarks.smollm.arms import ARMS
from benchmarks.smollm.labels import NOISES
from benchmarks.smollm.page import fill, markdown
from benchmarks.smollm.task_report import signed

BASE, CONTRAST, ALONE = "dpo", "contrast", "checked-alone"
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


def over_seeds(values: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The mean and its interval over prompts, and over seeds where there are enough.

    Args:
        values: of every seed, those of all prompts, shape (prompts,) each.
    """
    found = np.array(values)
    seeds, prompts = found.shape
    generator = np.random.default_rng(0)
    means = []
    for _ in range(analysis.DRAWS):
        which = generator.integers(seeds, size=seeds) if seeds >= WANTED else np.arange(seeds)
        means.append(found[np.ix_(which, generator.integers(prompts, size=prompts))].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(found.mean()), float(low), float(high)


def apart(pairs: Sequence[tuple[Line, Line]]) -> tuple[str, str]:
    """Reward of the first of each pair less that of the second, and how many; dashes of none."""
    gaps = [np.array(one["after"]) - np.array(base["after"]) for one, base in pairs]
    return (signed(over_seeds(gaps)), str(len(gaps))) if gaps else ("–", "–")


def against(lines: Sequence[Line], base: dict[int, Line]) -> str:
    """Reward less that of other runs of the same seeds, and of how many; a dash if of none."""
    paired = [line for line in lines if line["seed"] in base and line is not base[line["seed"]]]
    if not paired:
        return "–"
    return "{} ({})".format(*apart([(one, base[one["seed"]]) for one in paired]))


def row(lines: Sequence[Line], base: dict[int, Line]) -> list[str]:
    """The row of an arm, of its runs with one kind of labels."""
    gains = [np.array(line["after"]) - np.array(line["before"]) for line in lines]
    return [
        name_of(lines[0]),
        str(len(lines)),
        cell(over_seeds([right(line) for line in lines])),
        signed(over_seeds(gains)),
        against(lines, base),
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


def _run_so_far(lines: Sequence[Line]) -> list[str]:
    """How many seeds of ``WANTED`` each arm has been run with, by labels, all else being equal."""
    seeds: dict[Any, set[int]] = {}
    for line in lines:
        if line["rate"] == RATE:
            seeds.setdefault((line["arm"], kind_of(line)), set()).add(line["seed"])
    asked = {
        (arm, labels): 0
        for arm in ARMS
        for labels, noise in NOISES.items()
        if noise.checked or not ARMS[arm].checked_alone
    }
    for (arm, (labels, *_)), found in seeds.items():
        asked[arm, labels] = max(asked[arm, labels], min(len(found), WANTED))
    rows = [
        [f"`{arm}`", *(str(asked.get((arm, labels), "–")) for labels in NOISES)] for arm in ARMS
    ]
    done = f"{sum(asked.values())} of {WANTED * len(asked)} are run"
    said = f"Seeds run of the {WANTED} that are asked for, with the same pairs and epochs; {done}."
    return [
        f"{said} Of an arm with fewer: no verdict.",
        "",
        markdown(["arm", *NOISES], rows),
    ]


def text(lines: Sequence[Line]) -> str:
    """The Markdown between the markers."""
    if not lines:
        return "No run is stored yet."
    heads = ["arm", "seeds", "accuracy", "reward, change", "reward, against `dpo` (seeds)"]
    heads += ["KL", "AUC of turned labels, last review", "minutes of a core"]
    out = []
    for kind in dict.fromkeys(map(kind_of, lines)):
        some = [line for line in lines if kind_of(line) == kind]
        arms = {arm: [line for line in some if name_of(line) == arm] for arm in map(name_of, some)}
        bases = {
            arm: {line["seed"]: line for line in arms.get(f"`{arm}`", [])} for arm in (BASE, ALONE)
        }
        rows = [row(runs, bases[BASE]) for runs in arms.values()]
        labels, pairs, epochs, trainer = kind
        size = f"{pairs} pairs, {'one epoch' if epochs == 1 else f'{epochs} epochs'}"
        size += ", without Axolotl" if trainer == TORCH else ""
        out += [f"**{labels}**, {size}", "", markdown(heads, rows), ""]
        apart = against(arms.get(f"`{CONTRAST}`", []), bases[ALONE])
        if apart != "–":
            out += [f"Reward of `{CONTRAST}` less that of `{ALONE}` (seeds): {apart}", ""]
    return "\n".join([*out, *_run_so_far(lines)])


def write_page(lines: Sequence[Line], page: Path) -> None:
    """Put the text between the markers of a page, and print it."""
    found = text(lines)
    print(found)
    if page.is_file():
        fill(page, "grid", found)
