"""The SFT model asked for good answers: what it reads, and what the page says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from transformers import PreTrainedModel

from benchmarks.evidence import told
from benchmarks.evidence import vocabulary as words
from benchmarks.evidence.policy import Size, distance, new_model, sample
from benchmarks.evidence.runs import Results, Settings, sft_key
from benchmarks.evidence.summary import ArmRuns, Summary
from benchmarks.evidence.world import World

SETTINGS = Settings()


def test_its_answers_are_those_to_prompts_that_ask_for_good() -> None:
    model = new_model(Size(hidden=16, layers=1, heads=2), 0).eval()
    prompts = World(0).prompts("report", 24)
    good = np.ones(len(prompts), dtype=bool)
    asks, plain = words.prompt_ids(prompts, good), words.prompt_ids(prompts)
    one = cast(PreTrainedModel, told.Told(model))
    answers = sample(one, plain, 3)
    assert (answers == sample(model, asks, 3)).all()
    assert (answers != sample(model, plain, 3)).any()
    found = distance(one, model, plain, answers).kl
    assert found.min() > 0
    assert distance(model, model, plain, answers).kl == pytest.approx(0, abs=1e-5)


def summary_of(folder: Path, seeds: range, gains: dict[str, float]) -> Summary:
    """Worlds whose SFT models start apart and whose arms gain the same."""
    results = Results(folder)

    def line(key: str, seed: int, arm: str, gold: float) -> dict[str, Any]:
        known = {"key": key, "seed": seed, "arm": arm, "split": "report"}
        return {**known, "curve": [{"step": 1, "gold": gold, "kl": 0.5}]}

    for seed in seeds:
        start, told_key = sft_key(seed, "report", SETTINGS), told.key(seed, SETTINGS, True)
        results.found[start] = line(start, seed, "sft", float(seed))
        results.found[told_key] = line(told_key, seed, "told", seed + gains["told"])
    found = Summary(results, SETTINGS)
    sft = {seed: results.found[sft_key(seed, "report", SETTINGS)] for seed in seeds}
    for arm in told.COMPARED:
        runs = {seed: line("", seed, arm, seed + gains[arm]) for seed in seeds}
        found.arms["on-0.4", arm] = ArmRuns("on-0.4", arm, runs, sft)
    return found


def test_arms_are_compared_with_it_by_seed(tmp_path: Path) -> None:
    gains = {"told": 0.25, "contrast": 1.5, "dpo-new": 0.5}
    assert told.section(summary_of(tmp_path, range(12, 14), gains)) == []
    (part,) = told.section(summary_of(tmp_path, range(12, 15), gains))
    (row,) = [line for line in part.splitlines() if line.startswith("| on-0.4")]
    cells = [cell.split(" ")[0] for cell in row.strip("| ").split(" | ")]
    assert cells == ["on-0.4", "+0.25", "0.50", "+1.25", "+0.25"]
    assert row.count("(3)") == 2
