"""What a review reports: numbers for the host's logger, the stored summary, the table."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from sera_plugin.config import SelectionConfig
from sera_plugin.data.margins import PairLogps, overlap
from sera_plugin.data.metrics import QUANTILES, SET_ASIDE, SOURCES, metrics_of
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.tables import ReviewTable
from sera_plugin.review.review import Review
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.tables import side_by_side
from sera_plugin.scoring.scorer import Phase

LOG = logger(__name__)

WIDTH = 80
"""Characters of a line of the table of rounds."""


def accuracy(ratios: PairLogps) -> float:
    """Share of the pairs with finite numbers whose chosen answer has the larger implicit reward."""
    finite = ratios.finite
    if not finite.any():
        return float("nan")
    return float(np.mean(ratios.chosen[finite] > ratios.rejected[finite]))


def review_metrics(
    review: Review,
    pairs: OfflinePairs,
    previous: ReviewTable | None,
) -> dict[str, float]:
    """Numbers of one review, without the ``sera/`` prefix; missing ones are left out.

    Args:
        review: the review.
        pairs: D.
        previous: the previous review's table, for the overlap of the kept sets.
    """
    table, made, composition = review.table, review.bootstrapped, review.composition
    doubted = table.doubted
    margin = table.margin[np.isfinite(table.margin)]
    found = {
        "round": float(review.size.number),
        "margin_mean": float(margin.mean()),
        "margin_std": float(margin.std()),
        "set_aside": float(len(table.margin) - len(margin)),
        "aged_margins": float((table.measured_in < review.size.number - 1).sum()),
        "threshold": float(table.ensembled[table.kept].min()),
        "kept": float(len(composition.kept)),
        "eligible": float(review.choice.passed),
        "flipped": float(len(composition.flipped)),
        "bootstrapped": float(len(composition.bootstrapped)),
        "shortfall": float(review.size.bootstrapped - len(composition.bootstrapped)),
        "filled": float(len(composition.filled)),
        "filled_negative": float(sum(item in doubted for item in composition.filled)),
        "length_penalty": float(made.penalty),
        "prompts_without_room": float(made.without_room),
    }
    if review.size.number > 1:  # before round 1 the policy is the reference, and all ratios are 0
        found["accuracy_train"] = accuracy(table.ratios)
    for q in QUANTILES:
        found[f"margin_q{q:02d}"] = float(np.percentile(margin, q))
    for name, ratios in review.evaluation_ratios.items():
        found[f"accuracy_{name}"] = accuracy(ratios)
        found[f"set_aside_{name}"] = float((~ratios.finite).sum())
    if previous is not None:
        found["kept_overlap"] = overlap(table.kept, previous.kept)
    found |= {f"short_{reason.value}": float(count) for reason, count in made.short.items()}
    found |= _lengths(review, pairs)
    found |= _samples(review)
    found |= _guard(review)
    found |= _belief(review)
    found |= _speed("scoring", review.scoring)
    if made.samples:
        found |= _speed("generation", review.generation)
    return found


def full_round_metrics(number: int, size: int, bad: int) -> dict[str, float]:
    """Numbers of a round on all ``size`` pairs of D, ``bad`` of which were set aside."""
    return {"round": float(number), "kept": float(size - bad), "filled": float(bad)}


def full_round_text(bad: Collection[str]) -> dict[str, list[str]]:
    """Which pairs a round on all of D left out, for the stored summary; empty if none."""
    return {SET_ASIDE: sorted(bad)} if bad else {}


def warn_of_set_aside(metrics: dict[str, float]) -> None:
    """Log how much a review set aside, if anything."""
    aside = {name: int(n) for name, n in metrics.items() if name.startswith("set_aside") and n}
    if aside:
        LOG.warning(
            "Round %d: log-probs that are not finite numbers: %s", int(metrics["round"]), aside
        )


def _lengths(review: Review, pairs: OfflinePairs) -> dict[str, float]:
    kept = review.table.kept
    found = {
        "chosen_tokens_offline": float(pairs.chosen_tokens[kept].mean()),
        "rejected_tokens_offline": float(pairs.rejected_tokens[kept].mean()),
    }
    new = review.composition.bootstrapped
    if new:
        found["chosen_tokens_bootstrapped"] = _mean(len(p.chosen.token_ids) for p in new)
        found["rejected_tokens_bootstrapped"] = _mean(len(p.rejected.token_ids) for p in new)
        found["fresh_chosen_share"] = _mean(p.chosen.source.sampled for p in new)
        found["bootstrapped_margin_mean"] = _mean(p.margin for p in new)
    return found


def _samples(review: Review) -> dict[str, float]:
    samples = review.bootstrapped.samples
    if samples is None:
        return {}
    found = {
        "unique_answer_ratio": samples.unique,
        "finished_answer_ratio": samples.finished,
        "set_aside_answers": float(samples.set_aside),
    }
    if samples.kl is not None:
        # E[log πθ/πref] over the policy's own samples estimates KL(πθ‖πref); biased where the
        # sampling temperature is not 1 or top_p cuts.
        found["kl_policy_samples"] = samples.kl
    return found


def _guard(review: Review) -> dict[str, float]:
    decision = review.bootstrapped.decision
    if decision is None:
        return {}
    found = {
        "guard_share": decision.share,
        "guard_left_out": float(review.bootstrapped.left_out),
        **{f"guard_{name}": signal.value for name, signal in decision.signals.by_name().items()},
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _belief(review: Review) -> dict[str, float]:
    belief = review.belief
    if belief is None:
        return {}
    verdict = belief.verdict
    found = {
        "agreement": verdict.agreement,
        "agreement_low": verdict.agreement_low,
        "gate_open": float(verdict.open),
        "weight_zero": float((belief.weight == 0).sum()),
        "weight_effective": belief.effective,
    }
    if belief.error is not None:
        found["label_errors"] = belief.error.value
        found["label_errors_low"] = belief.error.low
        found["label_errors_high"] = belief.error.high
    return {name: value for name, value in found.items() if np.isfinite(value)}


def belief_text(review: Review, settings: SelectionConfig) -> dict[str, Any]:
    """What was believed of the labels, for the stored summary; empty if it was not asked."""
    if review.belief is None:
        return {}
    found: dict[str, Any] = {"selection": review.belief.text(settings)}
    if review.belief.sources:
        found[SOURCES] = {
            name: [share.value, share.low, share.high, share.pairs]
            for name, share in review.belief.sources.items()
        }
    return found


def first_spread(summaries: Sequence[Mapping[str, float]]) -> float | None:
    """The spread of the reward at the first review that measured it, from the rounds so far."""
    return next((s["guard_spread"] for s in summaries if "guard_spread" in s), None)


def guard_text(review: Review) -> dict[str, str]:
    """What the guard decided and why, for the stored summary; empty without bootstrapping."""
    decision = review.bootstrapped.decision
    if decision is None:
        return {}
    return {"guard": decision.sentence(review.size.bootstrapped)}


def _speed(name: str, phase: Phase) -> dict[str, float]:
    return {
        f"seconds_{name}": phase.seconds,
        f"tokens_per_second_{name}": phase.tokens / max(phase.seconds, 1e-9),
    }


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def table_text(rows: Sequence[dict[str, float]]) -> str:
    """The rounds so far as a plain table, one column each, and never wider than ``WIDTH``."""
    names = {name for row in rows for name in row} - {"round"}
    shown = [metric for metric in metrics_of(sorted(names)) if metric.title]
    columns = {
        f"{row['round']:.0f}": {
            m.title: m.text(row[m.name]) if m.name in row else "-" for m in shown
        }
        for row in rows
    }
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None)
    console.print(*side_by_side("SeRA rounds", "round", columns, WIDTH))
    return buffer.getvalue()
