"""How much reward at what distance: runs of the grid judged at checkpoints on their way.

python -m benchmarks.smollm.frontier --seeds 3 4

For runs that ``benchmarks.smollm.grid --checkpoints 20`` has left in its working folder; what is
stored is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.smollm import grid
from benchmarks.smollm.analysis import DRAWS
from benchmarks.smollm.arms import ARMS
from benchmarks.smollm.grid_report import ALONE, CONTRAST, Line, run_of
from benchmarks.smollm.page import fill, markdown
from benchmarks.smollm.prompted import ANSWERS, untrained
from benchmarks.smollm.task import add_options, append, fresh, means, parts, stored, task_of
from benchmarks.smollm.task_report import signed
from benchmarks.smollm.task_train import Task, TimeIsUp

POINTS = "sentiment-frontier.jsonl"
UPDATES = (20, 40, 60)
PROMPTS = 128
"""The first of those that policies are judged on."""
BUDGETS = (2.0, 5.0, 10.0, 20.0)
"""KL at which arms are compared, nats."""
LABELS = "turned-0.4-checked"
Gain = Callable[[float, np.ndarray], float]
"""Reward at a KL, over some prompts."""


def point(task: Task, wanted: Line, update: int, data: grid.Data) -> Line:
    """Rewards and log-ratios of the answers of a run's policy after ``update`` updates."""
    folder = grid.folder_of(task, wanted)
    policy = folder / "out" / f"checkpoint-{update}"
    if not policy.is_dir():
        raise SystemExit(f"There is no {policy}; the run wants `grid --checkpoints 20`.")
    asked = data.asked[:PROMPTS]
    lines = fresh(task, policy, asked, folder / f"answers-{update}.jsonl")
    value = parts(lines, data.floor, data.analyse)["value"]
    return {
        **wanted,
        "update": update,
        "after": means(value, 3),
        "kl": means([line["ratio"] for line in lines], 2),
    }


def curve(run: Line, points: Sequence[Line]) -> np.ndarray:
    """KL and reward by prompt, from the start to the end of a run, shape (points, 2, prompts)."""
    ways = [one for one in points if run_of(one) == run_of(run)]
    ways.sort(key=lambda one: int(one["update"]))
    start = np.stack([np.zeros(PROMPTS), np.array(run["before"][:PROMPTS])])
    ends = (np.array([one["kl"][:PROMPTS], one["after"][:PROMPTS]]) for one in (*ways, run))
    return np.stack([start, *ends])


def gained(curves: Sequence[np.ndarray], budget: float, prompts: np.ndarray) -> float:
    """Reward above the start's at a KL of ``budget`` nats, mean over runs; NaN beyond a run's end.

    Between two points reward is taken as linear in the root of the KL.
    """
    found = []
    for one in curves:
        kl, reward = one[:, :, prompts].mean(axis=2).T
        order = np.argsort(kl)
        roots = np.sqrt(np.maximum(kl[order], 0.0))
        value = np.interp(np.sqrt(budget), roots, reward[order], right=np.nan)
        found.append(float(value - reward[0]))
    return float(np.mean(found))


def cells(gain: Gain, budgets: Sequence[float] = BUDGETS) -> list[str]:
    """For each budget the gain and its middle 95% over draws of prompts; a dash beyond the end."""
    generator = np.random.default_rng(0)
    draws = [generator.integers(PROMPTS, size=PROMPTS) for _ in range(DRAWS)]
    found = []
    for budget in budgets:
        value = gain(budget, np.arange(PROMPTS))
        if not np.isfinite(value):
            found.append("–")
            continue
        low, high = np.nanpercentile([gain(budget, draw) for draw in draws], [2.5, 97.5])
        found.append(signed((value, float(low), float(high))))
    return found


def against_asking(arms: Mapping[str, Mapping[int, np.ndarray]], asked: Line) -> str:
    """A sentence: what arms have at the distance of the starting model that is asked, less its own.

    Args:
        arms: curves by arm and seed.
        asked: the line of ``prompted`` for the starting model.
    """
    gain, far = (np.array(asked[name][:PROMPTS]) for name in ("after", "kl"))
    gain = gain - np.array(asked["before"][:PROMPTS])

    def gap(curves: Sequence[np.ndarray], budget: float, prompts: np.ndarray) -> float:
        return gained(curves, budget, prompts) - float(gain[prompts].mean())

    budget = float(far.mean())
    said = [
        f"`{arm}` {cells(partial(gap, list(curves.values())), [budget])[0]}"
        for arm, curves in arms.items()
    ]
    return (
        f"At {budget:.1f} nats, the distance of the starting model that is asked "
        f"“{asked['ahead']}”, reward less that model's: {', '.join(said)}."
    )


def text(runs: Sequence[Line], points: Sequence[Line], asked: Line | None = None) -> str:
    """The Markdown between the markers, of runs that are judged at all points.

    Args:
        runs: of the grid.
        points: of runs on their way.
        asked: the line of ``prompted`` for the starting model, if it is there.
    """
    judged = {(run_of(one), one["update"]) for one in points}
    arms: dict[str, dict[int, np.ndarray]] = {}
    for run in runs:
        if judged.issuperset((run_of(run), update) for update in UPDATES):
            arms.setdefault(run["arm"], {})[run["seed"]] = curve(run, points)
    if not arms:
        return "No run is judged on its way yet."
    rows = []
    for arm, curves in arms.items():
        some = list(curves.values())
        end = np.mean([one[-1, 0].mean() for one in some])
        rows.append([f"`{arm}`", str(len(some)), f"{end:.1f}", *cells(partial(gained, some))])
    shared = sorted(arms.get(CONTRAST, {}).keys() & arms.get(ALONE, {}).keys())
    if shared:
        first, second = ([arms[arm][seed] for seed in shared] for arm in (CONTRAST, ALONE))

        def gap(budget: float, prompts: np.ndarray) -> float:
            return gained(first, budget, prompts) - gained(second, budget, prompts)

        rows.append([f"`{CONTRAST}` − `{ALONE}`", str(len(shared)), "–", *cells(gap)])
    heads = ["arm", "seeds", "KL at the end", *(f"at {budget:g} nats" for budget in BUDGETS)]
    found = markdown(heads, rows)
    return found if asked is None else f"{found}\n\n{against_asking(arms, asked)}"


def work(task: Task, given: argparse.Namespace) -> None:
    """Judge what is left until the time is up, seed by seed."""
    data = grid.data_of(task, given.packages)
    done = {(run_of(one), one["update"]) for one in stored(task.results / POINTS)}
    for seed, arm, update in product(given.seeds, given.arms, UPDATES):
        wanted = grid.wanted_of(task, LABELS, arm, seed)
        if (run_of(wanted), update) not in done:
            append(task.results / POINTS, [point(task, wanted, update, data)])
            print(arm, seed, update, flush=True)


def write_page(results: Path, page: Path) -> None:
    """Put the table between the markers of a page, and print it."""
    asked = untrained(stored(results / ANSWERS))
    found = text(stored(results / grid.RUNS), stored(results / POINTS), asked)
    print(found)
    if page.is_file():
        fill(page, "frontier", found)


def main() -> None:
    """Read the options, judge, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, pairs=1000, epochs=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[CONTRAST, ALONE])
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4])
    given = parser.parse_args()
    task = task_of(given, seed=0)
    try:
        work(task, given)
    except TimeIsUp:
        print("The time is up; the same command goes on from here.")
    write_page(given.results, given.page)


if __name__ == "__main__":
    main()
