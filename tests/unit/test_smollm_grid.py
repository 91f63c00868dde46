"""Wrong labels on pairs of the task, and the tables of runs with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.smollm import analysis, grid_report
from benchmarks.smollm.arms import ARMS, robust
from benchmarks.smollm.labels import NOISES, Noise, checked, drawn, found_by_round, labelled, turned
from benchmarks.smollm.sentiment import Pair
from benchmarks.smollm.wordings import WORDINGS
from sera_plugin.config import parse_block


def pairs(count: int) -> list[Pair]:
    gaps = np.random.default_rng(0).uniform(0.1, 2, count)
    return [
        Pair(f"k{n}", f"Ask {n}?", f"good {n}", f"bad {n}", float(gap), (5, 6))
        for n, gap in enumerate(gaps)
    ]


def test_a_label_that_is_turned_at_one_share_is_at_every_larger_one() -> None:
    some = pairs(2000)
    few, many = (np.array(turned(some, Noise(share), seed=3)) for share in (0.2, 0.4))
    assert few.mean() == pytest.approx(0.2, abs=0.03)
    assert many.mean() == pytest.approx(0.4, abs=0.03)
    assert not (few & ~many).any()
    assert turned(some, Noise(0.2), seed=3) != turned(some, Noise(0.2), seed=4)
    assert not any(turned(some, NOISES["clean"], seed=3))


def test_labels_of_checked_pairs_are_right() -> None:
    some = pairs(400)
    wrong = np.array(turned(some, Noise(0.4), seed=3))
    marked = checked(400, Noise(0.4, checked=100), seed=3)
    assert marked.sum() == 100
    found = turned(some, Noise(0.4, checked=100), seed=3)
    assert found == (wrong & ~marked).tolist()
    assert (wrong & marked).any()
    arm = ARMS["checked-alone"]
    assert arm.kept(400, Noise(0.4, checked=100), 3) == np.flatnonzero(marked).tolist()
    assert ARMS["random"].kept(512, Noise(0.4), 3) == list(range(358))


def test_patterned_errors_are_of_close_answers() -> None:
    some = pairs(2000)
    wrong = np.array(turned(some, Noise(0.4, patterned=True), seed=0))
    gaps = np.array([pair.gap for pair in some])
    assert wrong.mean() == pytest.approx(0.4, abs=0.03)
    assert wrong[gaps < 0.4].mean() > wrong[gaps > 1.6].mean() + 0.1


def test_a_wrong_label_changes_the_places_of_the_answers() -> None:
    right, wrong = labelled(pairs(2), [False, True])
    assert (right.chosen, right.rejected) == ("good 0", "bad 0")
    assert (wrong.chosen, wrong.rejected) == ("bad 1", "good 1")


def test_pairs_are_drawn_by_a_seed_without_repeats() -> None:
    some = pairs(50)
    assert drawn(some, 20, 1) == drawn(some, 20, 1) != drawn(some, 20, 2)
    assert len({pair.key for pair in drawn(some, 20, 1)}) == 20


def test_a_review_is_joined_to_labels_by_the_prompt(tmp_path: Path) -> None:
    folder = tmp_path / "sera" / "round-02"
    folder.mkdir(parents=True)
    prompt = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nAsk {}?<|im_end|>\n"
    ids = [f"id{n}" for n in range(4)]
    names = {"example_id": ids, "prompt": [prompt.format(n) for n in range(4)]}
    pq.write_table(pa.table(names), tmp_path / "sera" / "pairs.parquet")
    # In another order than the pairs.
    review = {"example_id": ids[::-1], "margin": [2.0, -1.0, 3.0, -2.0], "right": [np.nan] * 4}
    pq.write_table(pa.table(review), folder / "margins.parquet")
    wrong = {"Ask 0?": True, "Ask 1?": False, "Ask 2?": True, "Ask 3?": False}
    assert found_by_round(tmp_path, wrong) == {"round-02": {"margin": 1.0}}


@pytest.mark.parametrize("arm", ARMS)
def test_the_blocks_of_the_arms_are_allowed(arm: str) -> None:
    block = parse_block(ARMS[arm].block(NOISES["clean"]))
    assert block is not None
    beside = parse_block(ARMS[arm].block(NOISES["turned-0.4-checked"]))
    assert beside is not None
    assert (beside.selection.trusted == "checked") == (ARMS[arm].wording is not None)
    if ARMS[arm].wording is not None:
        assert ARMS[arm].wording in WORDINGS
        assert block.selection.reads_scores
        assert block.selection.gate
    assert 0 < robust(NOISES["clean"])["dpo_label_smoothing"] < 0.5


def line(arm: str, seed: int, after: float, labels: str = "turned-0.4") -> dict[str, Any]:
    spread = np.random.default_rng(seed).normal(0, 0.01, 40)
    return {
        "labels": labels,
        "pairs": 1000,
        "epochs": 1,
        "rate": 1e-4,
        "arm": arm,
        "seed": seed,
        "margins": [1.0] * 30 + [-1.0] * 10,
        "before": [0.0] * 40,
        "after": [float(after + one) for one in spread],
        "kl": [3.0] * 40,
        "review": {"round-01": {}, "round-02": {"margin": 0.61}} if arm == "select" else {},
        "seconds": 600,
    }


def test_the_tables_are_of_differences_to_dpo_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "DRAWS", 50)
    lines = [line("dpo", seed, 0.5) for seed in (0, 1)] + [line("select", 0, 0.75)]
    lines.append(line("select", 3, 9.0))  # no plain run of this seed
    found = grid_report.text(lines)
    assert "**turned-0.4**, 1000 pairs, one epoch" in found
    other = grid_report.text([*lines, line("sera", 0, 0.9) | {"pairs": 512, "epochs": 2}])
    assert "**turned-0.4**, 512 pairs, 2 epochs" in other
    assert re.search(r"\| `sera` \| 1 \| \.75 \[[^|]+ \| \+0\.[^|]+ \| – \|", other)
    assert "| `dpo` | 2 | .75 [" in found
    assert "| +0.250 [+0.250, +0.250] (1) |" in found
    assert "margin 0.61" in found
    assert "no verdict" in found
    faster = grid_report.text([*lines, line("dpo", 0, 0.75) | {"rate": 3e-4}])
    assert "| `dpo` | 2 | .75 [" in faster
    assert re.search(r"\| `dpo`, 0\.0003 \| 1 \|[^|]+\|[^|]+\| \+0\.250 [^|]+\(1\) \|", faster)
    assert "less that of `checked-alone`" not in found
    assert found.count("`checked-alone`") == 1, "only where runs are counted"
    assert grid_report.text([]) == "No run is stored yet."


def test_the_contrast_is_compared_with_the_checked_pairs_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(analysis, "DRAWS", 50)
    lines = [line("contrast", seed, 0.75, "turned-0.4-checked") for seed in (0, 1, 2)]
    lines += [line("checked-alone", seed, 0.5, "turned-0.4-checked") for seed in (1, 2)]
    found = grid_report.text(lines)
    said = "Reward of `contrast` less that of `checked-alone` (seeds): +0.250 [+0.250, +0.250] (2)"
    assert said in found


def test_what_has_not_been_run_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "DRAWS", 50)
    lines = [line("dpo", seed, 0.5) for seed in range(7)]
    lines += [line("dpo", 0, 0.5) | {"pairs": 512, "epochs": 2}, line("sera", 3, 0.5)]
    lines.append(line("random", 0, 0.5) | {"rate": 3e-4})
    lines += [line("robust", 0, 0.5) | {"pairs": 512, "epochs": 2}, line("robust", 1, 0.5)]
    found = grid_report.text(lines)
    assert "7 of 245 are run" in found
    assert "| `robust` | 1 | 0 |" in found
    assert "| `dpo` | 5 | 0 | 0 | 0 | 0 | 0 |" in found
    assert "| `sera` | 1 | 0 |" in found
    assert "| `random` | 0 | 0 |" in found
    assert "| `checked-alone` | – | – | – | – | – | 0 |" in found


def test_intervals_are_of_seeds_too_where_there_are_five() -> None:
    by_seed = [np.full(40, float(seed % 2)) for seed in range(4)]
    assert grid_report.over_seeds(by_seed) == (0.5, 0.5, 0.5)
    value, low, high = grid_report.over_seeds([*by_seed, np.full(40, 0.5)])
    assert value == 0.5
    assert low < 0.3
    assert high > 0.7
