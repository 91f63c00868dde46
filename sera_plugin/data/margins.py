"""Log-probs of pairs, margins, their ensemble and their order. Pure functions on numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sera_plugin.config import ExternalConfig, SelectionConfig
from sera_plugin.runtime.errors import BadNumbersError

if TYPE_CHECKING:
    from datasets import Dataset


def positions(ids: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Where in ``ids`` each of ``wanted`` is, int64, shape (len(wanted),).

    Raises:
        KeyError: if one is missing.
    """
    where = {example_id: row for row, example_id in enumerate(ids)}
    missing = [example_id for example_id in wanted if example_id not in where]
    if missing:
        raise KeyError(f"{len(missing)} examples are missing, the first is {missing[0]}")
    return np.array([where[example_id] for example_id in wanted], dtype=np.int64)


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of both answers of every pair under one model.

    Attributes:
        ids: example ids, unique.
        chosen: Σ log π(y⁺|x) over the tokens of the chosen answer, float64, shape (n,), nats.
        rejected: the same for the rejected answer.
    """

    ids: tuple[str, ...]
    chosen: np.ndarray
    rejected: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.chosen) == len(self.rejected):
            raise ValueError(
                f"{len(self.ids)} ids, {len(self.chosen)} chosen and {len(self.rejected)} rejected "
                "log-probs don't match"
            )

    @property
    def finite(self) -> np.ndarray:
        """Mask of the pairs with two finite numbers, bool, shape (n,)."""
        both: np.ndarray = np.isfinite(self.chosen) & np.isfinite(self.rejected)
        return both

    def aligned(self, ids: Sequence[str]) -> PairLogps:
        """The rows of ``ids``, in that order.

        Raises:
            KeyError: if an id is missing.
        """
        rows = positions(self.ids, ids)
        return PairLogps(tuple(ids), self.chosen[rows], self.rejected[rows])


def log_ratios(policy: PairLogps, reference: PairLogps) -> PairLogps:
    """log πθ/πref of both answers, joined by example id (the reward r divided by β)."""
    reference = reference.aligned(policy.ids)
    return PairLogps(
        policy.ids, policy.chosen - reference.chosen, policy.rejected - reference.rejected
    )


def margins(
    ratios: PairLogps, chosen_tokens: np.ndarray, rejected_tokens: np.ndarray, kind: str = "sum"
) -> np.ndarray:
    """Implicit reward margin m = log πθ/πref (y⁺) − log πθ/πref (y⁻), float64, shape (n,).

    Args:
        ratios: log-ratios of the pairs.
        chosen_tokens: lengths of the chosen answers, int, shape (n,).
        rejected_tokens: lengths of the rejected answers.
        kind: ``sum`` in nats, or ``mean`` in nats per token of each answer.

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind == "sum":
        difference: np.ndarray = ratios.chosen - ratios.rejected
        return difference
    if kind == "mean":
        chosen = ratios.chosen / np.maximum(chosen_tokens, 1)
        per_token: np.ndarray = chosen - ratios.rejected / np.maximum(rejected_tokens, 1)
        return per_token
    raise ValueError(f"unknown kind of margin {kind!r}; allowed are sum and mean")


def ensemble(current: np.ndarray, previous: np.ndarray | None, weight: float) -> np.ndarray:
    """m̃ₜ = (1−γ)·mₜ + γ·mₜ₋₁; without a previous review m̃ₜ = mₜ.

    Args:
        current: mₜ, shape (n,).
        previous: the previous review's own margins mₜ₋₁ of the same examples, or None; where they
            are not finite numbers, mₜ stands alone.
        weight: γ in [0, 1].
    """
    if previous is None:
        return current.copy()
    mixed = (1.0 - weight) * current + weight * previous
    return np.where(np.isfinite(previous), mixed, current)


def missing_columns(settings: ExternalConfig, names: list[str]) -> list[tuple[str, str]]:
    """Keys of ``sera.selection.external`` and the columns they name that are not there."""
    wanted = {"margin": settings.margin} if settings.margin else _scores(settings)
    return [(key, column) for key, column in wanted.items() if column not in names]


def margins_for(dataset: Dataset, selection: SelectionConfig) -> np.ndarray | None:
    """``external_margins`` where the rule of selection or a signal reads them, else None."""
    if not selection.reads_scores:
        return None
    return external_margins(dataset, selection.external)


def external_margins(dataset: Dataset, settings: ExternalConfig) -> np.ndarray:
    """Score of chosen minus score of rejected for every row, float64, shape (n,), NaN where none.

    Args:
        dataset: the pairs with their original columns.
        settings: which columns hold the scores.
    """
    if settings.margin:
        return _numbers(dataset, settings.margin)
    chosen, rejected = (_numbers(dataset, column) for column in _scores(settings).values())
    margin: np.ndarray = chosen - rejected
    return margin


def _scores(settings: ExternalConfig) -> dict[str, str]:
    return {"chosen": settings.chosen, "rejected": settings.rejected}


def _numbers(dataset: Dataset, column: str) -> np.ndarray:
    values = dataset.select_columns([column])[column]
    return np.array([_number(value) for value in values], dtype=np.float64)


def _number(value: Any) -> float:
    if value is None or isinstance(value, bool):
        return float("nan")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return float("nan")
    return number if np.isfinite(number) else float("nan")


def set_aside(margins: np.ndarray) -> np.ndarray:
    """``margins`` with those that are not finite numbers moved behind all others, to −inf."""
    return np.where(np.isfinite(margins), margins, -np.inf)


def check_numbers(finite: np.ndarray, limit: float, what: str, unit: str = "pairs") -> int:
    """Count what has log-probs that are not finite numbers.

    Args:
        finite: mask of what has finite ones, bool, shape (n,).
        limit: the largest share without them that a run goes on with.
        what: what was scored, for the message.
        unit: what is counted, for the message.

    Raises:
        BadNumbersError: if there are more.
    """
    bad = int((~finite).sum())
    if bad > limit * len(finite):
        raise BadNumbersError(
            f"{what}: {bad} of {len(finite)} {unit} have log-probs that are not finite numbers, "
            f"more than sera.max_set_aside: {limit} allows; the last checkpoint is untouched, look "
            "at the learning rate and the precision."
        )
    return bad


def rank(ids: Sequence[str], margins: np.ndarray) -> np.ndarray:
    """Positions by falling margin, ties by rising example id, int64, shape (n,).

    Raises:
        ValueError: if a margin is NaN or +inf; −inf stands for pairs that were set aside.
    """
    if not (margins < np.inf).all():
        bad = int(np.flatnonzero(~(margins < np.inf))[0])
        raise ValueError(f"the margin of example {ids[bad]} is {margins[bad]}, not a finite number")
    order: np.ndarray = np.lexsort((np.asarray(ids, dtype=np.str_), -margins))
    return order


def overlap(kept: np.ndarray, previous: np.ndarray) -> float:
    """Share of the kept pairs that the previous review kept as well; both masks, shape (n,)."""
    return float((kept & previous).sum() / max(1, kept.sum()))
