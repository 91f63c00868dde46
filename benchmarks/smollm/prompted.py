"""What an instruction does that says what the contrast asks for, with training and without.

python -m benchmarks.smollm.prompted
python -m benchmarks.smollm.prompted --labels turned-0.4 --arms dpo contrast --seeds 1 2

Whoever can name what the labels mean can write it ahead of every prompt, so this is what a run of
`contrast` with the same words has to be compared with: the starting model so asked, and policies
that ``benchmarks.smollm.grid`` has left in its working folder. Distances are those of the answers
from the starting model behind the prompt alone. What is stored is not done again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.smollm import grid
from benchmarks.smollm.arms import ARMS
from benchmarks.smollm.grid_report import (
    BASE,
    CONTRAST,
    RATE,
    Line,
    apart,
    kind_of,
    name_of,
    over_seeds,
    run_of,
)
from benchmarks.smollm.labels import NOISES
from benchmarks.smollm.page import fill, markdown
from benchmarks.smollm.task import add_options, append, fresh, means, parts, stored, task_of, untold
from benchmarks.smollm.task_report import signed
from benchmarks.smollm.task_train import Task, TimeIsUp
from benchmarks.smollm.wordings import WORDINGS

ANSWERS = "sentiment-prompted.jsonl"
COMPARED = (BASE, CONTRAST)
"""Arms whose runs on all pairs are compared with what the instruction does."""
PARTS = ("sentiment", "disfluency", "repeats", "finished", "tokens")


def of(line: Line) -> tuple[Any, ...]:
    """What tells one from all others: the wording, and the run, if any."""
    return line["wording"], *(run_of(line) if "arm" in line else ())


def judged(task: Task, wording: str, wanted: Line, data: grid.Data) -> Line:
    """Rewards, their parts and log-ratios of answers behind a wording's positive instruction.

    Args:
        task: what is asked for.
        wording: one of ``WORDINGS``.
        wanted: the run whose policy answers, as ``grid`` stores it; empty for the starting model.
        data: prompts and reward.

    Raises:
        SystemExit: if the run's folder is not there.
    """
    ahead, policy, place = WORDINGS[wording].positive, None, task.work
    if wanted:
        place = grid.folder_of(task, wanted)
        policy = place / "out"
        if not (place / "trained").exists():
            raise SystemExit(f"There is no trained policy in {place}; `grid` makes it.")
    start = untold(task, data.asked)
    lines = fresh(task, policy, data.asked, place / f"told-{wording}.jsonl", ahead)
    before, after = (parts(some, data.floor, data.analyse) for some in (start, lines))
    return {
        **wanted,
        "wording": wording,
        "ahead": ahead,
        "date": time.strftime("%Y-%m-%d"),
        "before": means(before["value"], 3),
        "after": means(after["value"], 3),
        "parts": {name: round(float(np.mean(after[name])), 4) for name in PARTS},
        "kl": means([line["ratio"] for line in lines], 2),
    }


def row(who: str, lines: Sequence[Line]) -> list[str]:
    """The row of a policy, of its runs."""
    gains = [np.array(line["after"]) - np.array(line["before"]) for line in lines]
    return [
        who,
        lines[0]["ahead"],
        str(len(lines)) if "arm" in lines[0] else "–",
        signed(over_seeds(gains)),
        f"{np.mean([np.mean(line['kl']) for line in lines]):.1f}",
        *(f"{np.mean([line['parts'][name] for line in lines]):.3f}" for name in PARTS),
    ]


def who_of(line: Line) -> str:
    """Who answers."""
    if "arm" not in line:
        return "the starting model"
    labels, pairs, epochs, _ = kind_of(line)
    return f"{name_of(line)}, {labels}, {pairs} × {epochs}"


def untrained(lines: Sequence[Line]) -> Line | None:
    """The first line that is of the starting model, if there is one."""
    return next((line for line in lines if "arm" not in line), None)


def beyond(runs: Sequence[Line], lines: Sequence[Line]) -> str:
    """A table of the reward that policies have, asked by the prompt alone, above asked ones.

    Args:
        runs: of the grid.
        lines: what is judged behind an instruction, `untrained` and perhaps `dpo`.
    """
    start = untrained(lines)
    if start is None or not runs:
        return ""
    told = {
        (kind_of(line), line["seed"]): line
        for line in lines
        if line.get("arm") == BASE and line["wording"] == start["wording"]
    }
    rows = []
    for who in dict.fromkeys(map(who_of, runs)):
        same = [run for run in runs if who_of(run) == who]
        paired = [(run, told.get((kind_of(run), run["seed"]))) for run in same]
        both = [(run, base) for run, base in paired if base is not None]
        rows.append([who, *apart([(run, start) for run in same]), *apart(both)])
    asked = f"asked “{start['ahead']}”"
    heads = ["policy, not asked", f"above the starting model {asked}", "seeds"]
    return markdown([*heads, f"above `{BASE}` {asked}, same pairs", "seeds"], rows)


def text(lines: Sequence[Line], runs: Sequence[Line] = ()) -> str:
    """The Markdown between the markers.

    Args:
        lines: what is judged behind an instruction.
        runs: of the grid, which are compared with `untrained`.
    """
    if not lines:
        return "No answers are judged yet."
    rows = []
    for who, wording in dict.fromkeys((who_of(line), line["wording"]) for line in lines):
        same = [line for line in lines if (who_of(line), line["wording"]) == (who, wording)]
        rows.append(row(who, same))
    found = markdown(["policy", "asked", "seeds", "reward, change", "KL", *PARTS], rows)
    return "\n\n".join(filter(None, [found, beyond(runs, lines)]))


def write_page(results: Path, page: Path) -> None:
    """Put the table between the markers of a page, and print it."""
    compared = [
        run
        for run in stored(results / grid.RUNS)
        if run["arm"] in COMPARED and run["pairs"] == grid.DRAWN_FROM and run["rate"] == RATE
    ]
    found = text(stored(results / ANSWERS), compared)
    print(found)
    if page.is_file():
        fill(page, "prompted", found)


def work(task: Task, given: argparse.Namespace) -> None:
    """Judge what is left until the time is up: the starting model, then runs seed by seed."""
    data = grid.data_of(task, given.packages)
    done = set(map(of, stored(task.results / ANSWERS)))
    runs = [
        grid.wanted_of(task, labels, arm, seed)
        for seed, labels, arm in product(given.seeds, given.labels, given.arms)
    ]
    for wanted, wording in product(({}, *runs), given.wordings):
        if of({**wanted, "wording": wording}) not in done:
            append(task.results / ANSWERS, [judged(task, wording, wanted, data)])


def main() -> None:
    """Read the options, judge what isn't judged, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, pairs=1000, epochs=1)
    add = parser.add_argument
    add("--wordings", nargs="+", choices=WORDINGS, default=list(WORDINGS))
    add("--labels", nargs="+", choices=NOISES, default=["turned-0.4"])
    add("--arms", nargs="+", choices=ARMS, default=[], help="whose policies are asked, too")
    add("--seeds", nargs="+", type=int, default=[])
    given = parser.parse_args()
    try:
        work(task_of(given, seed=0), given)
    except TimeIsUp:
        print("The time is up; the same command goes on from here.")
    write_page(given.results, given.page)


if __name__ == "__main__":
    main()
