"""Margins that the dataset itself carries: a judge's scores, or their difference. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from sera_plugin.config import ExternalConfig, SelectionConfig


def missing_columns(settings: ExternalConfig, names: list[str]) -> list[tuple[str, str]]:
    """Keys of ``sera.selection.external`` and the columns they name that are not there."""
    wanted = {"margin": settings.margin} if settings.margin else _scores(settings)
    return [(key, column) for key, column in wanted.items() if column not in names]


def margins_for(dataset: Dataset, selection: SelectionConfig) -> np.ndarray | None:
    """``external_margins`` where the rule of selection reads them, else None."""
    if selection.rule != "external":
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
    return chosen - rejected


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
