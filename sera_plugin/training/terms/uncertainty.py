"""The term ``uncertainty``: pairs that are judged unlike from time to time are asked for less.

After uncertainty-penalised DPO (arXiv 2410.20187), whose abstract has a correction to the loss that
attenuates the gradient of uncertain pairs. Its full text was not at hand; the formulas are ours:

    penalty: lower   the margin that a pair has to reach is lower by λ·u:  m + λ·u
    penalty: damp    the pair's loss, and so its gradient, is times exp(−λ·u)

u is the spread of what a pair was judged by, divided by its mean over D, so that λ is a penalty of
the mean pair: in the margin's unit, or as an exponent.

    spread: reviews   standard deviation of the pair's own margins over the reviews so far
    spread: signals   that of signals of the last review, each divided by its root mean square
    spread: column    a column of the data: the spread itself, or the scores of an ensemble

Nothing changes where no spread is known: for bootstrapped pairs, and but for ``column`` in the
warm-up, with ``reviews`` at the first review as well. Collectives: one broadcast per round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from sera_plugin.config import SeraConfig
from sera_plugin.config.fields import Block, Float
from sera_plugin.data.store import RunStore
from sera_plugin.data.tables import ReviewTable
from sera_plugin.review.selection import History
from sera_plugin.runtime.errors import SeraConfigError, no_column
from sera_plugin.runtime.ranks import shared
from sera_plugin.training.objective import Step
from sera_plugin.training.terms.reading import by_row, check_reviews, check_signals
from sera_plugin.training.terms.term import Opening, Term, TermParts, noting

KEY = "sera.loss.uncertainty"


class UncertaintyConfig(Block):
    """How far uncertain pairs are spared."""

    weight: Float = Field(
        default=0.1, ge=0, description="λ, the penalty of a pair of mean uncertainty."
    )
    penalty: Literal["lower", "damp"] = Field(
        default="lower",
        description="`lower` lowers the margin that a pair has to reach; `damp` its gradient.",
    )
    spread: Literal["reviews", "signals", "column"] = Field(
        default="reviews",
        description="Over what a pair's uncertainty is the standard deviation: the reviews so far, "
        "signals of the last one, or what a column of the data says.",
    )
    signals: list[str] = Field(
        default=[],
        json_schema_extra={"allowed": "a list of margin and names of sera.selection.signals"},
        description="`spread: signals`: which ones, two or more.",
    )
    column: str | None = Field(
        default=None,
        json_schema_extra={"allowed": "the name of a column, or null"},
        description="`spread: column`: a number from 0, or a list of an ensemble's scores.",
    )


class Uncertainty(Term):
    """Lowers what is asked of uncertain pairs, or their weight."""

    Settings = UncertaintyConfig
    paper = "2410.20187"
    reads_logits = False
    mixes_pairs = False

    settings: UncertaintyConfig

    def __init__(self, settings: UncertaintyConfig, parts: TermParts) -> None:
        super().__init__(settings, parts)
        self._spreads: Mapping[str, float] = {}

    @classmethod
    def check(cls, settings: UncertaintyConfig, config: SeraConfig, cfg: Any) -> None:
        if settings.spread == "reviews":
            check_reviews(f"{KEY}.spread: reviews", config)
        if settings.spread == "signals":
            check_signals(f"{KEY}.signals", settings.signals, config)
            if len(set(settings.signals)) < 2:
                raise SeraConfigError(
                    f"{KEY}.signals: {settings.signals} can't be used with spread: signals; name "
                    "two signals or more."
                )
        column, spread = settings.column or "null", settings.spread
        if (spread == "column") != (settings.column is not None):
            raise SeraConfigError(
                f"{KEY}.column: {column} can't be used with spread: {spread}; the two belong "
                "together."
            )

    @classmethod
    def check_data(
        cls, settings: UncertaintyConfig, config: SeraConfig, cfg: Any, dataset: Any, tokenizer: Any
    ) -> None:
        name = settings.column
        if name is None:
            return
        if name not in dataset.column_names:
            raise no_column(f"{KEY}.column", name, dataset.column_names, "that holds the spreads")
        if not np.isfinite(over_members(dataset[name])).any():
            raise SeraConfigError(
                f"{KEY}.column: {name} holds neither numbers from 0 nor lists of scores."
            )

    def open_round(self, opening: Opening) -> None:
        spread = shared(lambda: self._spread(opening))
        mean = np.nanmean(spread) if np.isfinite(spread).any() else 0.0
        found = spread / mean if mean > 0 else np.zeros(len(spread))
        self._spreads = by_row(opening.dataset, found, found)

    def _spread(self, opening: Opening) -> np.ndarray:
        if self.settings.column is not None:
            return over_members(self.parts.pairs.column(self.settings.column))
        if opening.table is None:
            return np.full(len(self.parts.pairs), np.nan)
        if self.settings.spread == "signals":
            return over_signals(opening.table, self.settings.signals)
        return over_reviews(self.parts.store, opening.number)

    def __call__(self, step: Step, prepared: Any) -> Step:
        spread = step.pairs([self._spreads[key] for key in step.keys])
        noted = noting(step, uncertainty__spread=spread)
        penalty = self.settings.weight * spread
        if self.settings.penalty == "lower":
            return replace(noted, shift=step.shift + penalty)
        return replace(noted, weight=step.weight * torch.exp(-penalty))


def over_reviews(store: RunStore, last: int) -> np.ndarray:
    """The spread of each pair's margins over the stored reviews up to ``last``, shape (n,)."""
    margins = [table.margin for table in store.read_tables(last)]
    return History.of(margins, margins).uncertainty()


def over_signals(table: ReviewTable, names: Sequence[str]) -> np.ndarray:
    """The spread over signals of a review, shape (n,); NaN where one has no number.

    Each is divided by its root mean square, without a shift, for its sign speaks for the label.
    """
    found = np.stack([table.signal(name) for name in names])
    found = np.where(np.isfinite(found), found, np.nan)
    size = np.sqrt(np.nanmean(found**2, axis=1, keepdims=True))
    return np.asarray(np.std(found / np.where(size > 0, size, 1.0), axis=0))


def over_members(values: Sequence[Any]) -> np.ndarray:
    """The spread that each value is, or that its list of scores has, shape (n,); else NaN."""
    return np.array([_spread_of(value) for value in values], dtype=np.float64)


def _spread_of(value: Any) -> float:
    try:
        scores = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return float("nan")
    spread = float(scores) if scores.ndim == 0 else float(np.std(scores)) if scores.size > 1 else -1
    return spread if 0 <= spread < np.inf else float("nan")
