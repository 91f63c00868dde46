"""Settings for the demo of ``example_configs``, the same ones tried for plain DPO and for SeRA.

``python -m benchmarks.demo_grid``: every setting of ``GRID`` in the worlds of ``TUNING``, with the
demo's pairs, updates and ``sera:`` block, through Axolotl's own entry point; then both
with the best settings in the worlds of ``TESTED``, the demo's own not among them. Prints Markdown
tables of the share of sampled answers that are true. Finished runs are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from benchmarks.evidence import runner

EXAMPLES = Path(__file__).resolve().parents[1] / "example_configs"
ARMS = ("plain DPO", "SeRA")
TUNING, TESTED = (101, 102), (103, 104, 105, 106, 107)
"""Seeds of worlds, each with facts, pairs, an SFT model and a training seed of its own."""
GRID = tuple(itertools.product((3e-4, 1e-3), (0.1, 0.5), (0.0, 1.0)))
"""Learning rates, values of β and weights of the SFT loss on chosen answers."""

Setting = tuple[float, float, float]


def config(world: Path, folder: Path, arm: str, setting: Setting, seed: int) -> dict[str, Any]:
    """The demo's keys with this setting, and without the plugin's trainer for plain DPO."""
    keys: dict[str, Any] = yaml.safe_load((EXAMPLES / "demo.yml").read_text(encoding="utf-8"))
    rate, beta, weight = setting
    for entry, name in ((keys["datasets"], "train"), (keys["test_datasets"], "eval")):
        entry[0]["path"] = str(world / f"{name}.jsonl")
    keys |= {
        "base_model": str(world / "model"),
        "output_dir": str(folder / "run"),
        "dataset_prepared_path": str(folder / "prepared"),
        "learning_rate": rate,
        "rl_beta": beta,
        "dpo_loss_type": ["sigmoid", "sft"] if weight else ["sigmoid"],
        "dpo_loss_weights": [1.0, weight] if weight else [1.0],
        "seed": seed,
    }
    if arm == "plain DPO":
        keys |= {"sera": False, "trainer_cls": None}
    return keys


def measure(work: Path, arm: str, setting: Setting, seed: int) -> float:
    """Train once; the share of sampled answers that are true."""
    from make_demo import make
    from show_demo import true_answers

    world = work / f"world-{seed}"
    folder = work / "-".join(map(str, (seed, arm.replace(" ", ""), *setting)))
    if not (world / "eval.jsonl").exists():
        make(world, seed)
    runner.train(config(world, folder, arm, setting, seed), folder)
    return true_answers(folder / "run", seed)


def results(work: Path, wanted: Iterable[tuple[str, Setting, int]]) -> dict[str, float]:
    """What every run found, by its description; runs that are not known yet are made."""
    file = work / "results.json"
    found: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    left = [run for run in wanted if str(run) not in found]
    jobs = [
        (partial(measure, work, *run), work / "logs" / f"{number}.txt")
        for number, run in enumerate(left)
    ]
    for number, share in runner.run_all(jobs, 1):
        found[str(left[number])] = share
        file.write_text(json.dumps(found, indent=1))
        print(left[number], f"{share:.1%}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("evidence-work/demo"))
    work: Path = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(EXAMPLES))
    runner.prepare_parent()
    found = results(work, itertools.product(ARMS, GRID, TUNING))
    tuned = {
        arm: {s: mean(found[str((arm, s, seed))] for seed in TUNING) for s in GRID} for arm in ARMS
    }
    rows = [[*map(str, s), *(f"{tuned[arm][s]:.1%}" for arm in ARMS)] for s in GRID]
    print("\n" + table(["Learning rate", "β", "SFT weight", *ARMS], rows))
    best = {arm: max(GRID, key=tuned[arm].__getitem__) for arm in ARMS}
    # SeRA also with what is best for plain DPO, which is what the demo shows.
    shown = [(ARMS[0], best[ARMS[0]]), (ARMS[1], best[ARMS[0]]), (ARMS[1], best[ARMS[1]])]
    found = results(work, [(*run, seed) for run in shown for seed in TESTED])
    rows = [[str(n), *(f"{found[str((*run, n))]:.1%}" for run in shown)] for n in TESTED]
    means = (mean(found[str((*run, seed))] for seed in TESTED) for run in shown)
    rows.append(["mean", *(f"{share:.1%}" for share in means)])
    print("\n" + table(["World", *(f"{arm} {setting}" for arm, setting in shown)], rows))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
