"""Arms on pairs of the task with wrong labels, going on where it stopped.

python -m benchmarks.smollm.grid --minutes 480

Needs the answers that ``benchmarks.smollm.task`` has sampled. Every run is `axolotl train` with the
plugin, or plain PyTorch where Axolotl is missing; each policy is judged on the held-out pairs and
prompts of their second half. What is stored is not done again; a run that is cut by the time goes
on from its last checkpoint, in plain PyTorch from the start.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.smollm import task_train, torch_train
from benchmarks.smollm.arms import ARMS, robust
from benchmarks.smollm.grid_report import AXOLOTL, RATE, TORCH, run_of, write_page
from benchmarks.smollm.labels import NOISES, checked, drawn, found_by_round, labelled, turned
from benchmarks.smollm.sentiment import Analyse, Asked, Pair, pairs_of, vader
from benchmarks.smollm.task import (
    SAMPLES,
    add_options,
    append,
    fresh,
    margins,
    means,
    parts,
    stored,
    task_of,
    untold,
)
from benchmarks.smollm.task_train import Task, TimeIsUp, seconds
from benchmarks.smollm.wordings import contrasts_of, seen

RUNS = "sentiment-grid.jsonl"
DRAWN_FROM = 1000
"""The first pairs of the task, of which a run draws its own."""
TRAINERS = {AXOLOTL: task_train.train, TORCH: torch_train.train}


@dataclass(frozen=True)
class Data:
    """What all runs share: the pairs to draw from, those held out, the floor, and the reward."""

    pairs: list[Pair]
    held: list[Pair]
    floor: float
    analyse: Analyse

    @property
    def asked(self) -> list[Asked]:
        """Prompts that policies are judged on: of the second half of the held-out pairs."""
        return [Asked(pair.key, pair.prompt, True) for pair in self.second]

    @property
    def second(self) -> list[Pair]:
        return self.held[len(self.held) // 2 :]


def wanted_of(
    task: Task, labels: str, arm: str, seed: int, rate: float = RATE, trainer: str = AXOLOTL
) -> dict[str, Any]:
    """What a run is asked for, with which its line begins."""
    wanted = {"labels": labels, "arm": arm, "seed": seed, "rate": rate}
    return wanted | {"pairs": task.pairs, "epochs": task.epochs, "trainer": trainer}


def folder_of(task: Task, wanted: dict[str, Any]) -> Path:
    """Where a run lies."""
    name = "{labels}-{arm}-{pairs}-{epochs}-{rate:g}-seed-{seed}".format(**wanted)
    return task.work / ("grid" if wanted["trainer"] == AXOLOTL else "grid-torch") / name


def run(task: Task, wanted: dict[str, Any], data: Data) -> dict[str, Any]:
    """Train and judge one policy; the line that is stored, which begins with what is wanted."""
    name, arm, seed, rate = (wanted[key] for key in ("labels", "arm", "seed", "rate"))
    how, noise = ARMS[arm], NOISES[name]
    pairs = drawn(data.pairs, task.pairs, seed)
    wrong = turned(pairs, noise, seed)
    kept = how.kept(len(pairs), noise, seed)
    as_labelled = labelled(pairs, wrong)
    rows = [as_labelled[number].row() for number in kept]
    if how.wording is not None:
        contrasts = contrasts_of(task.results, how.wording)
        for row, pair, one in zip(rows, pairs, wrong, strict=True):
            row["seen"] = seen(pair, one, contrasts)
        if noise.checked:
            for row, one in zip(rows, checked(len(pairs), noise, seed), strict=True):
                row["checked"] = bool(one)
    changes = {"learning_rate": rate, "seed": seed}
    if arm == "robust":
        changes |= robust(noise)
    if len(kept) < len(pairs):
        # As many updates as the arms that see all pairs.
        changes["num_epochs"] = round(task.epochs * len(pairs) / len(kept))
    by_host = wanted["trainer"] == AXOLOTL
    folder = folder_of(task, wanted)
    out = TRAINERS[wanted["trainer"]](task, folder, rows, how.block(noise), changes)
    before = untold(task, data.asked)
    after = fresh(task, out, data.asked, folder / "answers.jsonl")
    found = margins(task, out, data.second)
    judged = {
        when: parts(lines, data.floor, data.analyse)
        for when, lines in (("before", before), ("after", after))
    }
    is_wrong = {pair.prompt: one for pair, one in zip(pairs, wrong, strict=True)}
    return {
        **wanted,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds(folder)),
        "turned": sum(wrong),
        "margins": [round(float(value), 2) for value in found],
        "before": means(judged["before"]["value"], 3),
        "after": means(judged["after"]["value"], 3),
        "parts": {
            part: round(float(np.mean(values)), 4) for part, values in judged["after"].items()
        },
        "kl": means([line["ratio"] for line in after], 2),
        "review": found_by_round(out, is_wrong) if by_host else {},
    }


def data_of(task: Task, packages: Path, drawn_from: int = DRAWN_FROM) -> Data:
    """What all runs share, from the stored answers.

    Raises:
        SystemExit: if they give too few pairs.
    """
    analyse = vader(packages)
    lines = stored(task.results / SAMPLES)
    floor, pairs, held = pairs_of(lines, analyse) if lines else (0.0, [], [])
    data = Data(pairs[:drawn_from], held[: task.held_out], floor, analyse)
    if len(data.pairs) < task.pairs or len(data.held) < task.held_out:
        raise SystemExit(
            f"There are {len(data.pairs)} pairs and {len(data.held)} held-out ones of "
            f"{task.pairs} and {task.held_out}; `make smollm-task` samples the others."
        )
    return data


def work(task: Task, given: argparse.Namespace) -> None:
    """Do what is left until the time is up, seed by seed."""
    data = data_of(task, given.packages, given.drawn_from)
    done = set(map(run_of, stored(task.results / RUNS)))
    for seed, name, arm in product(given.seeds, given.labels, given.arms):
        wanted = wanted_of(task, name, arm, seed, given.rate, given.trainer)
        if run_of(wanted) in done or (ARMS[arm].checked_alone and not NOISES[name].checked):
            continue
        append(task.results / RUNS, [run(task, wanted, data)])
        print(json.dumps(wanted), flush=True)


def main() -> None:
    """Read the options, work, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, pairs=512, epochs=2)
    add = parser.add_argument
    add("--labels", nargs="+", choices=NOISES, default=list(NOISES))
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    add("--seeds", nargs="+", type=int, default=list(range(5)))
    add("--rate", type=float, default=RATE, help="stage 2 chose the default")
    add("--trainer", choices=TRAINERS, default=AXOLOTL if find_spec("axolotl") else TORCH)
    add("--drawn-from", type=int, default=DRAWN_FROM)
    add("--checkpoints", type=int, default=1, help="kept of a run by Axolotl, for `frontier`")
    given = parser.parse_args()
    task = replace(task_of(given, seed=0), checkpoints=given.checkpoints)
    try:
        work(task, given)
    except TimeIsUp:
        print("The time is up; the same command goes on from here.")
    write_page(stored(given.results / RUNS), given.page)


if __name__ == "__main__":
    main()
