"""The evidence testbed: what tuning tries, new regimes and arms, and tests of many lines."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.evidence import pairs
from benchmarks.evidence.arm import NEW_SEEDS, Arm, neighbours
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.bars import Bar, _adjusted
from benchmarks.evidence.comparisons import Row, compared
from benchmarks.evidence.plan import FRESH
from benchmarks.evidence.regimes import REGIMES, Regime
from benchmarks.evidence.runs import (
    FRESH_TUNING_SEEDS,
    TUNING_SEEDS,
    Results,
    Run,
    Settings,
    report_runs,
    sft_key,
    tuned,
    tuning_runs,
)
from benchmarks.evidence.signals import CONTRAST
from benchmarks.evidence.statistics import Interval, holm
from benchmarks.evidence.summary import ArmRuns
from benchmarks.evidence.world import World
from sera_plugin.config import parse_block

SETTINGS = Settings()


def store(results: Results, run: Run, gold: float) -> None:
    record = {"key": run.key(SETTINGS), "arm": run.arm, "curve": [{"gold": gold}]}
    results.found[record["key"]] = record


def fill(
    results: Results, regime: str, arm: str, gold: dict[tuple[str, float, float], float]
) -> None:
    """Store all that tuning asks for, 0 where ``gold`` says nothing."""
    for run in tuning_runs(regime, arm, SETTINGS, results):
        if results.get(run, SETTINGS) is None:
            store(results, run, gold.get((run.arm, run.rate, run.beta), 0.0))


def test_tuning_takes_the_best_points_of_dpo_and_then_settings(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert tuning_runs("on-0.4", "entropy", SETTINGS, results) == []
    best = {("dpo", 5e-4, 0.03): 3.0, ("dpo", 1.2e-3, 0.1): 2.0, ("dpo", 5e-4, 0.3): 1.0}
    fill(results, "on-0.4", "dpo", best)
    first = tuning_runs("on-0.4", "entropy", SETTINGS, results)
    assert [(r.arm, r.rate, r.beta) for r in first] == [
        ("entropy-0.95", 5e-4, 0.03), ("entropy-0.95", 1.2e-3, 0.1), ("entropy-0.95", 5e-4, 0.3)
    ]  # fmt: skip
    assert {(r.seed, r.split, r.regime) for r in first} == {(TUNING_SEEDS[0], "tune", "on-0.4")}
    fill(results, "on-0.4", "entropy", {("entropy-0.95", 1.2e-3, 0.1): 1.0})
    assert tuned("on-0.4", "entropy", SETTINGS, results) is None
    fill(results, "on-0.4", "entropy", {("entropy-1.2", 1.2e-3, 0.1): 2.0})
    assert len(tuning_runs("on-0.4", "entropy", SETTINGS, results)) == 5
    assert tuned("on-0.4", "entropy", SETTINGS, results) == ("entropy-1.2", 1.2e-3, 0.1)
    # Off-policy pairs take what on-policy ones found; the run is of the arm that was picked.
    (run,) = report_runs("off-0.4", "entropy", [7], SETTINGS, results)
    assert (run.arm, run.rate, run.split) == ("entropy-1.2", 1.2e-3, "report")


def test_a_wide_arm_tries_the_neighbours_of_its_best_point(tmp_path: Path) -> None:
    results = Results(tmp_path)
    fill(results, "on-0.4", "dpo-new", {("dpo-new", 5e-4, 0.03): 1.0})
    assert tuned("on-0.4", "dpo-new", SETTINGS, results) is None
    runs = tuning_runs("on-0.4", "dpo-new", SETTINGS, results)
    assert {r.seed for r in runs} == set(FRESH_TUNING_SEEDS)
    tried = list(dict.fromkeys((r.rate, r.beta) for r in runs))
    assert tried[5:] == [(2e-4, 0.03), (1.2e-3, 0.03), (5e-4, 0.01)]
    fill(results, "on-0.4", "dpo-new", {("dpo-new", 5e-4, 0.01): 2.0})
    assert tuned("on-0.4", "dpo-new", SETTINGS, results) == ("dpo-new", 5e-4, 0.01)
    assert neighbours("dpo", 2e-4, 0.01) == [(5e-4, 0.01), (2e-4, 0.03)]


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.sera is not None])
def test_every_block_is_allowed(name: str) -> None:
    assert parse_block(dict(ARMS[name].sera or {})) is not None


def test_arms_among_which_tuning_picks_differ_by_one_setting() -> None:
    for name, arm in ARMS.items():
        for part in arm.among:
            assert not ARMS[part].among
            assert (ARMS[part].loss, ARMS[part].clean) == (arm.loss, arm.clean), name
    assert (
        len({Run("on-0.4", a, 0, "tune", 1e-3, 0.1).key(SETTINGS) for a in ARMS["rdpo"].among}) == 2
    )


def test_new_fields_leave_the_keys_of_old_regimes_alone() -> None:
    assert Regime().identity == {
        "source": "on", "noise": 0.2, "pairs": 2_000, "epochs": 3, "spurious": False
    }  # fmt: skip
    keys = {
        Run(regime, "dpo", 0, "report", 5e-4, 0.1).key(SETTINGS)
        for regime in ("on-0.4", "patterned-0.4", "unasked-0.4")
    }
    assert len(keys) == 3
    assert sft_key(0, "report", SETTINGS) != sft_key(0, "report", SETTINGS, asked=False)


@pytest.mark.parametrize("noise", [0.2, 0.4])
def test_errors_with_a_pattern_spare_clear_pairs(noise: float) -> None:
    world = World(3)
    candidates = pairs.off_policy(world, 2_300, 0)
    found = pairs.label(candidates, 2_000, noise, 0, patterned=True)
    even = pairs.label(candidates, 2_000, noise, 0)
    assert (found.prompts.rows(), found.flipped.mean()) == (
        even.prompts.rows(), pytest.approx(noise, abs=0.04)
    )  # fmt: skip
    gap = np.abs(
        world.gold(found.prompts, found.chosen) - world.gold(found.prompts, found.rejected)
    )
    close = gap < np.median(gap)
    assert found.flipped[close].mean() > found.flipped[~close].mean() + 0.04
    assert even.flipped[close].mean() == pytest.approx(even.flipped[~close].mean(), abs=0.06)
    chance = pairs.errors_by_gap(np.array([0.0, 1.0, 3.0]), noise)
    assert chance.mean() == pytest.approx(noise)
    assert chance[0] == 0.5


def test_the_arm_contrast_is_the_preset() -> None:
    bootstrap = {"max_new_tokens": 31}
    preset = parse_block(
        {"preset": "contrast", "selection": {"contrast": CONTRAST}, "bootstrap": bootstrap}
    )
    arm = parse_block(dict(ARMS["contrast"].sera or {}))
    assert preset is not None
    assert arm is not None
    same = {"preset": "contrast", "bootstrap": preset.bootstrap}
    assert arm.model_copy(update=same) == preset


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_of_a_mean_by_hand() -> None:
    found = Interval.of([1.0, 2.0, 3.0])
    # t = 2√3 with 2 degrees of freedom.
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert found.p_above(0.0) == pytest.approx(0.0371, abs=1e-4)
    assert found.p_above(2.0) == pytest.approx(0.5)


def test_lines_that_hold_one_by_one_may_not_hold_together() -> None:
    lines = [Bar("x", "on-0.2", "better", "holds", "", p) for p in (0.001, 0.02, 0.024)]
    assert [bar.holm for bar in _adjusted(lines)] == ["holds", "no longer", "no longer"]
    assert [bar.holm for bar in _adjusted([Bar("x", "r", "w", "fails", "", 0.9)])] == ["-"]


def runs(regime: str, arm: str, golds: dict[int, float]) -> ArmRuns:
    made = {s: {"curve": [{"gold": g, "kl": 2.0}]} for s, g in golds.items()}
    sft = {s: {"curve": [{"gold": 0.0}]} for s in golds}
    return ArmRuns(regime, arm, made, sft)  # type: ignore[arg-type]


def test_a_pooled_row_takes_each_seeds_mean_over_regimes() -> None:
    arms = {
        ("on-0.4", "dpo"): runs("on-0.4", "dpo", {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}),
        ("on-0.4", "select"): runs("on-0.4", "select", {0: 2.0, 1: 1.0, 2: 1.5, 3: 9.0}),
        ("on-0.2", "dpo"): runs("on-0.2", "dpo", {0: 3.0, 1: 3.0, 2: 3.0}),
        ("on-0.2", "select"): runs("on-0.2", "select", {0: 3.0, 1: 4.0, 2: 3.5}),
    }
    summary = SimpleNamespace(arms=arms)
    row = Row.of(summary, "select", "dpo", ["on-0.4", "on-0.2"])  # type: ignore[arg-type]
    assert row is not None
    # Seed 3 is not in both regimes; with seeds 0 and 1 alone there would be no row.
    assert (row.difference.mean, row.difference.seeds) == (0.5, 3)
    assert row.share == pytest.approx(0.5 / 2.0)
    (cells,) = compared(summary, [("select", "dpo")], ["on-0.4", "on-0.2"])  # type: ignore[arg-type]
    assert cells[3] == "3 × 2"
    assert cells[-1].endswith("(3)")


def test_arms_on_new_seeds_have_a_plan_of_their_own() -> None:
    assert NEW_SEEDS == 12
    assert set(FRESH) == {name for name, arm in ARMS.items() if arm.fresh}
    assert all(regime in REGIMES for regime in ("patterned-0.4", "unasked-0.4"))
    assert isinstance(ARMS["dpo-new"], Arm)
