"""What the wordings that were chosen on the first pairs show on pairs not looked at by then.

Pure functions on stored lines. Signals are those of ``analysis``: chosen minus rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from benchmarks.smollm.analysis import LIKE, auc, cell, interval, judged, right, signals
from benchmarks.smollm.page import markdown

FIRST = 300
"""Pairs that wordings were chosen on; those stored after them confirm it or don't."""
CHOSEN = "high- − low-quality (user), sum"
"""The wording with the largest share at like lengths on the first pairs."""
LENGTH = "length (longer)"
CONFIRMED = (
    CHOSEN,
    "Sr-DPO's 100 − 1 (user), sum",
    "Sr-DPO's 100 − 1 (user), per token",
    "high- − low-quality (user), per token",
    "the first two, per token, averaged",
    LENGTH,
)
SUSPECT = 0.05
"""Share of pairs that an audit would look at."""
WEAK = 0.1
"""Share of pairs with the smallest difference of the judge's scores, which count as weak."""
TURNED = (0.2, 0.4)


def turned_among_suspects(values: np.ndarray, share: float) -> float:
    """Share of turned labels among the SUSPECT most suspect, if ``share`` of labels were turned.

    A pair's signal v becomes −v when its label is turned, so every pair counts as v with weight
    1 − share and as −v with weight share: what turning at random gives on average.
    """
    n = len(values)
    both = np.concatenate([values, -values])
    weights = np.repeat([1 - share, share], n) / n
    order = np.argsort(both, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    taken = np.clip(SUSPECT - before, 0, weights[order])
    return float(taken[order >= n].sum() / SUSPECT)


def weak_among_suspects(values: np.ndarray, judge: np.ndarray) -> float:
    """Share of weak pairs among the SUSPECT most suspect, WEAK by chance."""
    count = max(1, round(SUSPECT * len(values)))
    weak = judge <= np.quantile(judge, WEAK)
    return float(weak[np.argsort(values, kind="stable")[:count]].mean())


def beyond_length(values: np.ndarray, ratio: np.ndarray) -> float:
    """What a signal says of the label that length doesn't: a of P(right) = σ(a·v + b·log ratio).

    By maximum likelihood, v in its root mean squares; 0 says that length says it all.

    Args:
        values: chosen minus rejected of each pair, shape (n,).
        ratio: tokens of chosen over those of rejected, shape (n,).
    """
    scaled = values / np.sqrt(np.mean(values**2))
    features = np.stack([scaled, np.log(ratio)], axis=1)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = features @ weights
        return float(np.logaddexp(0, -logits).sum()), -features.T @ expit(-logits)

    return float(minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x[0])


def confirmation(lines: list[dict[str, Any]]) -> str:
    """The Markdown of the pairs after the first: shares and AUC of what was chosen before."""
    questions = np.array([line["question"] for line in lines])
    tokens = np.array([line["tokens"] for line in lines], dtype=float)
    ratio = tokens[:, 0] / tokens[:, 1]
    later = np.arange(len(lines)) >= FIRST
    like = later & (ratio >= LIKE[0]) & (ratio <= LIKE[1])
    unseen = like & ~np.isin(questions, questions[:FIRST])
    masks = {"all": later, "like lengths": like, "like lengths, new questions": unseen}
    heads = [f"right, {name} ({mask.sum()})" for name, mask in masks.items()]
    found = signals(lines)
    rows = []
    for name in CONFIRMED:
        values = found[name]
        cells = [_share(right, values, questions, mask) for mask in masks.values()]
        cells.append(_share(auc, values, questions, later))
        if name != LENGTH:
            beyond = interval(
                lambda some, v=values: beyond_length(v[some], ratio[some]),  # type: ignore[misc]
                questions,
                later,
            )
            cells.append("{:+.2f} [{:+.2f}, {:+.2f}]".format(*beyond))
        rows.append([name, *cells])
    heads += [f"AUC, all ({later.sum()})", "a, beside length"]
    return markdown(["signal", *heads], rows)


def audit(lines: list[dict[str, Any]]) -> str:
    """The Markdown of what an audit of the most suspect pairs would find, over all pairs."""
    questions = np.array([line["question"] for line in lines])
    judge = judged(lines)
    everything, known = np.ones(len(lines), bool), np.isfinite(judge)
    rows = []
    for name, values in signals(lines).items():
        weak = interval(
            lambda some, v=values: weak_among_suspects(v[some], judge[some]),  # type: ignore[misc]
            questions,
            known,
        )
        turned = [
            _share(lambda v, q=share: turned_among_suspects(v, q), values, questions, everything)  # type: ignore[misc]
            for share in TURNED
        ]
        rows.append([name, cell(weak), *turned])
    heads = [f"weak pairs (by chance {WEAK:.0%})"]
    heads += [f"turned labels, if {share:.0%} were turned" for share in TURNED]
    return markdown([f"signal, the {SUSPECT:.0%} most suspect", *heads], rows)


def _share(
    statistic: Callable[[np.ndarray], float],
    values: np.ndarray,
    questions: np.ndarray,
    mask: np.ndarray,
) -> str:
    return cell(interval(lambda rows: statistic(values[rows]), questions, mask))
