"""What the gate does on pairs of the task: turned labels against the package's own gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.smollm import gates
from benchmarks.smollm.gates import Drawn, draw, rows, text
from benchmarks.smollm.labels import NOISES, drawn
from benchmarks.smollm.sentiment import Pair
from benchmarks.smollm.task import append, key_of
from benchmarks.smollm.wordings import CONTRASTS, seen


def pairs(count: int) -> list[Pair]:
    gaps = np.random.default_rng(0).uniform(0.1, 2, count)
    return [
        Pair(f"k{n}", f"Ask {n}?", f"good {n}", f"bad {n}", float(gap), (5, 6))
        for n, gap in enumerate(gaps)
    ]


def knowing(some: list[Pair], slope: float) -> dict[str, float]:
    """A signal that takes the chosen answer for the better one with σ(slope·|s|)."""
    draw = np.random.default_rng(1)
    size = np.abs(draw.normal(size=len(some)))
    agrees = draw.random(len(some)) < 1 / (1 + np.exp(-slope * size))
    return {
        key_of(pair): float(value)
        for pair, value in zip(some, np.where(agrees, size, -size), strict=True)
    }


def test_the_gate_opens_for_a_signal_that_knows_and_stays_closed_for_one_that_does_not() -> None:
    some = pairs(1000)

    def told(slope: float, labels: str, checked: int = 0) -> list[Drawn]:
        signal, noise = knowing(some, slope), replace(NOISES[labels], checked=checked)
        return [draw(drawn(some, 1000, seed), signal, noise, seed) for seed in range(10)]

    noisy = told(1.5, "turned-0.4")
    assert sum(one.opened for one in noisy) >= 9
    assert np.mean([one.right for one in noisy]) > 0.65, "of 60% right labels"
    assert np.mean([one.effective for one in noisy]) < 0.8
    clean = told(1.5, "clean")
    assert not any(one.opened for one in clean)
    assert {one.effective for one in clean} == {1.0}
    assert sum(one.opened for one in told(0.0, "turned-0.4")) <= 2
    weak, beside = (told(0.4, "clean", checked) for checked in (0, 100))
    assert np.mean([one.effective for one in weak]) < 0.85
    assert np.mean([one.effective for one in beside]) > 0.93


def test_a_row_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "DRAWS", 2)
    some = pairs(600)
    found = list(rows("tone", some, knowing(some, 1.5)))
    assert len({tuple(row[:4]) for row in found}) == len(found) == 20
    assert ["tone", "clean", "600", "–", "0 of 2"] in [row[:5] for row in found]


def test_what_is_not_scored_yet_is_said(tmp_path: Path) -> None:
    some = pairs(20)
    lines = [
        {"wording": "tone", "key": key, "contrast": value}
        for key, value in list(knowing(some, 1.0).items())[:7]
    ]
    append(tmp_path / CONTRASTS, lines)
    assert text(tmp_path, some) == (
        "tone: 7 of 20 pairs are scored. built-in: 0 of 20 pairs are scored."
    )


def test_a_contrast_is_turned_with_its_label() -> None:
    one = pairs(1)[0]
    assert [seen(one, wrong, {key_of(one): 1.5}) for wrong in (False, True)] == [1.5, -1.5]
    with pytest.raises(SystemExit, match="is not stored"):
        seen(one, False, {})


def test_key_of_a_pair_is_of_its_answers_too() -> None:
    one, other = pairs(1)[0], Pair("k0", "Ask 0?", "good 0", "worse 0", 1.0, (5, 6))
    assert key_of(one) != key_of(other)
    assert key_of(one) == key_of(pairs(1)[0])
