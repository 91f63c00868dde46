"""Sweeps over β: what an arm reaches at a KL, and which runs make it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from benchmarks.evidence.arm import BETAS
from benchmarks.evidence.frontier import compare, reached, sweep
from benchmarks.evidence.runs import Results, Settings, tuning_runs
from benchmarks.evidence.smoothing import conservative
from sera_plugin.training.objective import Step, base_of


def test_the_gain_at_a_distance_is_the_best_one_up_to_it() -> None:
    points = [(4.0, 0.5), (2.0, 1.0)]
    assert reached(points, 1.0) == pytest.approx(0.5)
    assert reached(points, 2.0) == pytest.approx(1.0)
    # Beyond its best point an arm may stop there.
    assert reached(points, 3.0) == pytest.approx(1.0)
    assert reached([(4.0, -1.0)], 2.0) == 0.0


def test_frontiers_are_compared_where_both_reach() -> None:
    mine, other = [[(8.0, 2.0)]], [[(2.0, 1.0), (4.0, 1.0)]]
    # Up to KL 4: 1, 2, 3 and 4 nats, where one has 0.25 a nat and the other 0.5 and then no more.
    assert compare(mine, other) == [
        [pytest.approx(-0.25)], [pytest.approx(-0.5)], [pytest.approx(-0.25)], [pytest.approx(0.0)]
    ]  # fmt: skip


def test_a_sweep_keeps_the_tuned_learning_rate(tmp_path: Path) -> None:
    results, settings = Results(tmp_path), Settings()
    assert sweep("on-0.4", "dpo-new", 12, settings, results) == []
    for _ in range(2):
        for run in tuning_runs("on-0.4", "dpo-new", settings, results):
            gold = float((run.rate, run.beta) == (1.2e-3, 0.1))
            results.found[run.key(settings)] = {"curve": [{"gold": gold}]}
    found = sweep("on-0.4", "dpo-new", 12, settings, results)
    assert [(run.rate, run.beta) for run in found] == [(1.2e-3, beta) for beta in BETAS["dpo"]]


def test_conservative_dpo_is_the_mixture_of_both_labels() -> None:
    policy = torch.tensor([[1.0, 3.0], [2.0, -1.0]])
    base, ones = base_of("sigmoid"), torch.ones(2, 2)
    step = Step.of(("a", "b"), policy, torch.zeros(2, 2), ones, 0.5, base)
    margins = torch.tensor([-1.0, 1.5])
    expected = 0.7 * -logsigmoid(margins) + 0.3 * -logsigmoid(-margins)
    found = conservative(step, share=0.3).loss()
    assert torch.allclose(found, expected.mean())
