"""Whether DPO learns the task: the table and the sentence of docs/language-model.md.

The learning rate is chosen by the accuracy on the first half of the held-out pairs; what is said of
it is measured on the second half, and so are the rewards. Intervals are the middle 95% of bootstrap
draws of prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.smollm.analysis import cell, interval
from benchmarks.smollm.page import fill, markdown
from benchmarks.smollm.sentiment import pairs_of, vader
from benchmarks.smollm.task import RUNS, SAMPLES, stored

LEAST_ACCURACY, ERRORS = 0.6, 2.0
"""What a go takes: accuracy on the second half, and standard errors that the reward rises by."""
FEWEST = 1000
"""Pairs to train on below which a run is a trial of the scripts and gives no verdict."""
PARTS = ("value", "sentiment", "disfluency", "repeats", "finished", "tokens")


def mean(values: np.ndarray) -> tuple[float, float, float]:
    """The mean, and its interval over entries (prompts), shape (n,)."""
    everything = np.ones(len(values), bool)
    return interval(lambda rows: float(values[rows].mean()), np.arange(len(values)), everything)


def halves(run: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each held-out pair is ordered as by the reward, ties as half, by half."""
    right = (np.sign(np.array(run["margins"])) + 1) / 2
    middle = len(right) // 2
    return right[:middle], right[middle:]


def rise(run: dict[str, Any], part: str = "value") -> np.ndarray:
    """After less before, of the mean over a prompt's answers, shape (prompts,)."""
    before, after = (np.array(run[when][part]).mean(axis=1) for when in ("before", "after"))
    found: np.ndarray = after - before
    return found


def error(values: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def signed(found: tuple[float, float, float]) -> str:
    """`+.12 [+.08, +.16]`."""
    value, low, high = (f"{number:+.3f}" for number in found)
    return f"{value} [{low}, {high}]"


def is_go(run: dict[str, Any]) -> bool:
    """Whether the run meets what was fixed before."""
    change = rise(run)
    return halves(run)[1].mean() >= LEAST_ACCURACY and change.mean() > ERRORS * error(change)


def finished_alone(parts: dict[str, Any]) -> float:
    """Mean reward of the answers that ended by themselves; NaN if none did."""
    reward, done = (np.array(parts[name], dtype=float) for name in ("value", "finished"))
    return float((reward * done).sum() / done.sum()) if done.any() else float("nan")


def table(runs: list[dict[str, Any]]) -> str:
    """A row for each learning rate."""
    heads = ["learning rate", "accuracy, first half", "accuracy, second half", "reward, change"]
    heads += [f"{name}, before → after" for name in ("reward of finished answers", *PARTS[1:])]
    rows = []
    for run in runs:
        cells = [f"{run['rate']:g}", *(cell(mean(half)) for half in halves(run))]
        cells.append(signed(mean(rise(run))))
        cells.append("{:.3f} → {:.3f}".format(*map(finished_alone, (run["before"], run["after"]))))
        for name in PARTS[1:]:
            before, after = (np.mean(run[when][name]) for when in ("before", "after"))
            cells.append(f"{before:.3f} → {after:.3f}" if name != "tokens" else
                         f"{before:.1f} → {after:.1f}")  # fmt: skip
        rows.append(cells)
    return markdown(heads, rows)


def verdict(runs: list[dict[str, Any]]) -> str:
    """Go or no go, and by which numbers."""
    best = max(runs, key=lambda run: float(halves(run)[0].mean()))
    change, second = rise(best), halves(best)[1]
    longer = np.array(best["longer"][len(best["longer"]) // 2 :], dtype=float)
    numbers = (
        f"at the learning rate that the first half chooses, {best['rate']:g}, accuracy on the "
        f"second half of the held-out pairs is {cell(mean(second))} (of the longer answer: "
        f"{cell(mean(longer))}), and the reward changes by {signed(mean(change))}, "
        f"{change.mean() / error(change):+.1f} standard errors."
    )
    if best["pairs"] < FEWEST:
        return f"**No verdict, a trial of the scripts on {best['pairs']} pairs**: {numbers}"
    word = "Go" if is_go(best) else "No go: the task is to be changed before anything else"
    return f"**{word}**: {numbers}"


def text(results: Path, packages: Path) -> str:
    """The Markdown between the markers."""
    lines, runs = stored(results / SAMPLES), stored(results / RUNS)
    if not lines:
        return "Nothing is stored yet."
    floor, train, held = pairs_of(lines, vader(packages))
    finished = float(np.mean([done for line in lines for done in line["finished"]]))
    said = (
        f"{len(lines)} prompts are sampled, {finished:.0%} of their answers finished within 64 "
        f"tokens; they give {len(train)} pairs to train on and {len(held)} held-out ones, with "
        f"gaps of reward of {np.mean([pair.gap for pair in (*train, *held)] or [0.0]):.2f} on "
        f"average and a floor of {floor:.2f} nats per token."
    )
    if not runs:
        return f"{said}\n\nNo run is stored yet."
    most = max((run["pairs"], run["epochs"], run["date"]) for run in runs)
    shown = [run for run in runs if (run["pairs"], run["epochs"]) == most[:2]]
    about = f"{most[0]} pairs, {most[1]} epochs, {len(shown[0]['margins'])} held-out pairs."
    return "\n".join([said, "", about, "", table(shown), "", verdict(shown)])


def write_page(results: Path, page: Path, packages: Path) -> None:
    """Put the text between the markers of a page, and print it."""
    found = text(results, packages)
    print(found)
    if page.is_file():
        fill(page, "sentiment", found)
