"""What an instruction alone does: the starting model asked for what the contrast asks for.

python -m benchmarks.smollm.prompted

Nothing is trained. Whoever can name what their labels mean can write it ahead of every prompt, so
this is what a run of `contrast` with the same words has to be compared with. Distances are those of
its answers from the starting model behind the prompt alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.smollm import grid
from benchmarks.smollm.grid_report import Line, over_seeds
from benchmarks.smollm.page import fill, markdown
from benchmarks.smollm.task import add_options, append, fresh, parts, stored, task_of
from benchmarks.smollm.task_report import signed
from benchmarks.smollm.task_train import Task, TimeIsUp
from benchmarks.smollm.wordings import WORDINGS

ANSWERS = "sentiment-prompted.jsonl"
PARTS = ("sentiment", "disfluency", "repeats", "finished", "tokens")


def asked_for(task: Task, wording: str, data: grid.Data) -> Line:
    """Rewards, their parts and log-ratios of answers to prompts behind a wording's positive one."""
    ahead = WORDINGS[wording].positive
    start = fresh(task, None, data.asked, task.work / f"start-{task.seed}.jsonl")
    lines = fresh(task, None, data.asked, task.work / f"told-{wording}.jsonl", ahead)
    before, after = (parts(some, data.floor, data.analyse) for some in (start, lines))
    return {
        "wording": wording,
        "ahead": ahead,
        "date": time.strftime("%Y-%m-%d"),
        "before": [round(float(np.mean(two)), 3) for two in before["value"]],
        "after": [round(float(np.mean(two)), 3) for two in after["value"]],
        "parts": {name: round(float(np.mean(after[name])), 4) for name in PARTS},
        "kl": [round(float(np.mean(line["ratio"])), 2) for line in lines],
    }


def row(line: Line) -> list[str]:
    """The row of a wording."""
    gain = np.array(line["after"]) - np.array(line["before"])
    return [
        line["ahead"],
        signed(over_seeds([gain])),
        f"{np.mean(line['kl']):.1f}",
        *(f"{line['parts'][name]:.3f}" for name in PARTS),
    ]


def text(lines: Sequence[Line]) -> str:
    """The Markdown between the markers."""
    if not lines:
        return "No answers are judged yet."
    return markdown(["ahead of the prompt", "reward, change", "KL", *PARTS], list(map(row, lines)))


def write_page(results: Path, page: Path) -> None:
    """Put the table between the markers of a page, and print it."""
    found = text(stored(results / ANSWERS))
    print(found)
    if page.is_file():
        fill(page, "prompted", found)


def main() -> None:
    """Read the options, judge what isn't judged, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, pairs=1000, epochs=1)
    parser.add_argument("--wordings", nargs="+", choices=WORDINGS, default=list(WORDINGS))
    given = parser.parse_args()
    task = task_of(given, seed=0)
    data = grid.data_of(task, given.packages)
    done = {line["wording"] for line in stored(task.results / ANSWERS)}
    try:
        for wording in given.wordings:
            if wording not in done:
                append(task.results / ANSWERS, [asked_for(task, wording, data)])
    except TimeIsUp:
        print("The time is up; the same command goes on from here.")
    write_page(given.results, given.page)


if __name__ == "__main__":
    main()
