"""Statistics of signals on stored log-probs, and what is put into a pair's line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.smollm import analysis, confirm, signals_report
from benchmarks.smollm.signals import PROMPTS


def lines(count: int) -> list[dict[str, object]]:
    """Pairs whose log-probs are noise, save the built-in ``user`` wording, which is right."""
    generator = np.random.default_rng(3)
    names = ["none", *(f"{name}_{side}" for name in PROMPTS for side in ("positive", "negative"))]
    made = []
    for number in range(count):
        logps = {name: [float(v) for v in generator.normal(-80, 5, 2)] for name in names}
        logps["user_positive"] = [logps["user_negative"][0] + 3, logps["user_negative"][1] - 3]
        judge = None if number % 4 == 0 else 0.9
        made.append(
            {
                "question": f"q{number // 2}",
                "tokens": [int(n) for n in generator.integers(5, 160, 2)],
                "logps": logps,
                "judge_chosen": judge,
                "judge_rejected": float(generator.uniform()),
            }
        )
    return made


def test_auc_is_the_share_of_pairs_of_pairs() -> None:
    values = np.array([1.5, -0.5, 0.0, 2.0, 0.5])
    by_hand = [float(v > -w) + 0.5 * float(v == -w) for v in values for w in values]
    assert analysis.auc(values) == pytest.approx(np.mean(by_hand))
    assert analysis.right(values) == pytest.approx(0.7)
    assert analysis.auc(-values) == pytest.approx(1 - analysis.auc(values))


def test_interval_draws_questions_not_pairs() -> None:
    values = np.repeat([1.0, -1.0], 20)
    everything = np.ones(40, bool)
    few, many = np.repeat([0, 1], 20), np.arange(40)
    for questions, width in ((few, 1.0), (many, 0.3)):
        value, low, high = analysis.interval(
            lambda rows: analysis.right(values[rows]), questions, everything
        )
        assert value == 0.5
        assert high - low == pytest.approx(width, abs=0.06)


def test_a_right_signal_and_noise_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "DRAWS", 20)
    made = lines(120)
    found = analysis.signals(made)
    assert analysis.right(found["high- − low-quality (user), sum"]) == 1
    assert analysis.right(found["high- − low-quality (user), per token"]) == 1
    assert 0.3 < analysis.right(found["Sr-DPO's 100 − 1 (user), sum"]) < 0.7
    assert "120 pairs of 60 questions" in analysis.table(made)
    assert "judge's difference (90)" in analysis.table(made)


def test_the_tables_go_between_their_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "DRAWS", 20)
    monkeypatch.setattr(confirm, "FIRST", 100)
    monkeypatch.setattr(signals_report, "FIRST", 100)
    page, results = tmp_path / "page.md", tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines(160)))
    monkeypatch.setattr("sys.argv", ["report", "--page", str(page), "--results", str(results)])
    page.write_text("no place")
    with pytest.raises(SystemExit, match="has no place"):
        signals_report.main()
    parts = ("signals", "confirmation", "audit")
    page.write_text(
        "before\n"
        + "".join(f"<!-- {name}: begin -->\nold\n<!-- {name}: end -->\n" for name in parts)
        + "after\n"
    )
    signals_report.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "100 pairs of 50 questions" in text
    assert "right, all (60)" in text
    assert "like lengths, new questions" in text
    assert f"the {confirm.SUSPECT:.0%} most suspect" in text


def test_suspects_are_turned_as_often_as_any_by_noise_and_all_by_a_right_signal() -> None:
    noise = np.random.default_rng(0).normal(size=4000)
    assert confirm.turned_among_suspects(noise, 0.2) == pytest.approx(0.2, abs=0.08)
    sure = np.abs(noise)
    assert confirm.turned_among_suspects(sure, 0.2) == pytest.approx(1)
    assert confirm.turned_among_suspects(sure, 0.02) == pytest.approx(0.4)


def test_turned_labels_among_suspects_are_what_turning_at_random_gives() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(0.7, 1, size=3000)
    found = []
    for _ in range(40):
        turned = generator.random(3000) < 0.4
        seen = np.where(turned, -values, values)
        found.append(turned[np.argsort(seen)[:150]].mean())
    assert confirm.turned_among_suspects(values, 0.4) == pytest.approx(np.mean(found), abs=0.02)


def test_weak_pairs_among_suspects() -> None:
    judge = np.arange(100) / 100
    assert confirm.weak_among_suspects(judge, judge) == 1
    assert confirm.weak_among_suspects(-judge, judge) == 0


def test_what_a_signal_says_beyond_length_is_found_beside_it_and_nothing_of_length_itself() -> None:
    generator = np.random.default_rng(2)
    ratio = np.exp(generator.normal(0.5, 1, 40_000))
    longer = np.log(ratio)
    assert abs(confirm.beyond_length(longer + generator.normal(0, 1, 40_000), ratio)) < 0.1
    known = generator.normal(0, 1, 4000)
    turn = np.where(generator.random(4000) < 1 / (1 + np.exp(-1.5 * known)), 1, -1)
    neutral = np.exp(generator.normal(0, 1, 4000))
    assert confirm.beyond_length(known * turn, neutral) == pytest.approx(1.5, abs=0.15)


def test_no_figures_from_a_few_pairs() -> None:
    assert analysis.table(lines(99)) == "99 pairs are stored: too few for figures."
