"""How often signals rank pairs as the judge did: statistics of stored lines, and their table.

Every interval is the middle 95% of 2,000 bootstrap draws of questions, since pairs of one question
share it. ``right`` is the share of pairs whose chosen answer has the larger value, ties as half;
``AUC`` is that of telling a pair's label from the same pair's turned label by the value alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from benchmarks.smollm.page import markdown
from sera_plugin.scoring.contrast import combined

LIKE = (0.6, 1.7)
DRAWS = 2000
FEWEST = 100
"""Pairs below which figures would say nothing, and none are shown."""
Statistic = Callable[[np.ndarray], float]


def signals(lines: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Every signal by its words: chosen minus rejected of each pair, shape (n,)."""
    tokens = np.array([line["tokens"] for line in lines], dtype=float)

    def logps(name: str) -> np.ndarray:
        return np.array([line["logps"][name] for line in lines])

    def difference(values: np.ndarray) -> np.ndarray:
        return np.asarray(values[:, 0] - values[:, 1])

    plain = logps("none")
    found = {
        "length (longer)": difference(tokens),
        "log-prob, sum": difference(plain),
        "log-prob, per token": difference(plain / tokens),
        "prompt of Sr-DPO minus none, sum": difference(logps("rating_positive") - plain),
        "prompt of Sr-DPO minus none, per token": difference(
            (logps("rating_positive") - plain) / tokens
        ),
    }
    words = {"system": "expert − careless (system)", "user": "high- − low-quality (user)"}
    words |= {"rating": "Sr-DPO's 100 − 1 (user)", "tone": "cheerful − gloomy (user)"}
    both = []
    for name in (name for name in words if f"{name}_positive" in lines[0]["logps"]):
        raised = logps(f"{name}_positive") - logps(f"{name}_negative")
        found[f"{words[name]}, sum"] = difference(raised)
        found[f"{words[name]}, per token"] = difference(raised / tokens)
        if name in ("system", "user"):
            both.append(difference(raised / tokens))
    found["the first two, per token, averaged"] = combined(both)
    return found


def judged(lines: list[dict[str, Any]]) -> np.ndarray:
    """The judge's score of the chosen answer less that of the rejected one; NaN if not known."""
    return np.array(
        [
            np.nan if None in (line["judge_chosen"], line["judge_rejected"])
            else line["judge_chosen"] - line["judge_rejected"]
            for line in lines
        ],
        dtype=float,
    )  # fmt: skip


def right(values: np.ndarray) -> float:
    """Share of positive values, zeros as half."""
    return float(np.mean((np.sign(values) + 1) / 2)) if len(values) else float("nan")


def auc(values: np.ndarray) -> float:
    """P(v > −v′) over all pairs of pairs, ties as half: of labels against turned labels."""
    n = len(values)
    if not n:
        return float("nan")
    ranks = rankdata(np.concatenate([values, -values]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / n**2)


def interval(
    statistic: Statistic, questions: np.ndarray, mask: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Value, and the middle 95% over draws of questions, of a statistic of row numbers."""
    rows = np.flatnonzero(mask)
    if not len(rows):
        return (float("nan"),) * 3
    groups = [rows[questions[rows] == q] for q in np.unique(questions[rows])]
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(DRAWS):
        drawn = generator.integers(len(groups), size=len(groups))
        found.append(statistic(np.concatenate([groups[i] for i in drawn])))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return statistic(rows), float(low), float(high)


def cell(found: tuple[float, float, float]) -> str:
    """`.58 [.49, .66]`."""
    value, low, high = (f"{number:.2f}".replace("0.", ".", 1) for number in found)
    return f"{value} [{low}, {high}]"


def table(lines: list[dict[str, Any]]) -> str:
    """The Markdown between the markers: the table, or that there are too few pairs."""
    if len(lines) < FEWEST:
        return f"{len(lines)} pairs are stored: too few for figures."
    questions = np.array([line["question"] for line in lines])
    tokens = np.array([line["tokens"] for line in lines], dtype=float)
    ratio = tokens[:, 0] / tokens[:, 1]
    judge = judged(lines)
    everything, known = np.ones(len(lines), bool), np.isfinite(judge)
    strata = {
        "all": everything,
        "like lengths": (ratio >= LIKE[0]) & (ratio <= LIKE[1]),
        "chosen shorter": ratio < LIKE[0],
        "chosen longer": ratio > LIKE[1],
    }
    heads = [f"right, {name} ({mask.sum()})" for name, mask in strata.items()]
    heads += [f"AUC, all ({len(lines)})", f"Spearman with the judge's difference ({known.sum()})"]
    rows = []
    for name, values in signals(lines).items():
        cells = [
            cell(interval(lambda some, v=values: right(v[some]), questions, mask))  # type: ignore[misc]
            for mask in strata.values()
        ]
        cells.append(cell(interval(lambda some, v=values: auc(v[some]), questions, everything)))  # type: ignore[misc]
        cells.append(
            cell(
                interval(
                    lambda some, v=values: float(spearmanr(v[some], judge[some])[0]),  # type: ignore[misc]
                    questions,
                    known,
                )
            )
        )
        rows.append([name, *cells])
    about = f"{len(lines)} pairs of {len(np.unique(questions))} questions."
    return f"{about}\n\n{markdown(['signal', *heads], rows)}"
