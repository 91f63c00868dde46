"""``python -m benchmarks.evidence.told``: what the instruction does that the contrast asks for.

Nothing is trained: the SFT model answers the reported prompts with `good` in the place of `any`,
and is judged as policies are. Stored like the runs, in ``results/told.jsonl``.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.evidence import study
from benchmarks.evidence import vocabulary as words
from benchmarks.evidence.arm import FRESH_SEEDS
from benchmarks.evidence.comparisons import FEWEST
from benchmarks.evidence.regimes import REGIMES
from benchmarks.evidence.runs import Results, Settings, digest, fingerprint, sft_key
from benchmarks.evidence.statistics import Interval
from benchmarks.evidence.summary import Summary
from benchmarks.evidence.tables import table

KIND = "told"
COMPARED = ("contrast", "dpo-new")

TEXT = (
    "Whoever can name what good answers are can also ask for them. So, without any training: the "
    "SFT model behind `good`, on the same prompts and judged as policies are, whose prompts have "
    "`any`. Its gain in gold reward above the SFT model behind `any`, its KL to that, and what "
    "arms of the tables above gain beyond it; paired by seed, in brackets the seeds. "
    "`python -m benchmarks.evidence.told` repeats it."
)


class Told:
    """A model that reads GOOD in the place of a prompt's quality word.

    Args:
        model: what answers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.device = model, model.device

    def __call__(self, input_ids: torch.Tensor, **rest: Any) -> Any:
        if input_ids.shape[1] >= words.PROMPT_TOKENS:
            input_ids = input_ids.clone()
            input_ids[:, 1] = words.IDS[words.GOOD]
        return self.model(input_ids=input_ids, **rest)


def key(seed: int, settings: Settings, asked: bool) -> str:
    """Key of a measurement; ``asked`` as in ``Regime``."""
    what = [KIND, fingerprint(), settings.identity(), seed, asked]
    return digest(json.dumps(what))


def answered(seed: int, settings: Settings, work: Path, asked: bool) -> dict[str, Any]:
    """What the SFT model of a world does behind GOOD, on the reported prompts."""
    numbers, _ = study.judge_sft(seed, "report", settings, work, asked, Told)
    known = {"key": key(seed, settings, asked), "regime": KIND, "arm": KIND, "seed": seed}
    return {**known, "split": "report", "asked": asked, "curve": [{"step": 0, **numbers}]}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.told")
    study.add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, settings = Results(args.results), Settings()
    for seed, asked in product(args.seeds, (True, False)):
        if key(seed, settings, asked) not in results.found:
            results.add(answered(seed, settings, args.work, asked))


def section(summary: Summary) -> list[str]:
    """The part of the page, a row for each regime of new worlds with FEWEST seeds or more."""
    rows = []
    for regime, one in REGIMES.items():
        arms = [summary.arms.get((regime, name)) for name in COMPARED]
        gains, far = _told(summary, one.asked)
        shared = [sorted(gains.keys() & arm.gains.keys()) if arm else [] for arm in arms]
        if min(map(len, shared)) < FEWEST:
            continue
        cells = [
            f"{Interval.of([arm.gains[s] - gains[s] for s in seeds])} ({len(seeds)})"
            for arm, seeds in zip(arms, shared, strict=True)
            if arm
        ]
        found = list(gains.values())
        rows.append((regime, str(Interval.of(found)), f"{sum(far) / len(far):.2f}", *cells))
    if not rows:
        return []
    head = ("regime", "gain behind `good`", "KL", *(f"`{arm}` beyond it" for arm in COMPARED))
    return [f"## An instruction alone\n\n{TEXT}\n\n{table(head, rows)}"]


def _told(summary: Summary, asked: bool) -> tuple[dict[int, float], list[float]]:
    """Gain above the SFT model behind ANY by seed, and the KLs."""
    known, settings = summary.results.found, summary.settings
    gains, far = {}, []
    for seed in FRESH_SEEDS:
        one = known.get(key(seed, settings, asked))
        start = known.get(sft_key(seed, "report", settings, asked))
        if one and start:
            end = one["curve"][-1]
            gains[seed] = float(end["gold"] - start["curve"][-1]["gold"])
            far.append(float(end["kl"]))
    return gains, far


if __name__ == "__main__":
    main()
