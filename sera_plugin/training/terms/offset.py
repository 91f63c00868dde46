"""The term ``offset``: ODPO (arXiv 2402.10571), a margin that a pair has to reach.

    −log σ(m − Δ),   Δ = α·f(s⁺ − s⁻)

s± are scores of the data's own, from the columns that ``sera.selection.external`` names. f is the
logarithm, as in the authors' code, or the identity. Δ is 0 where f is not defined: for a
difference that is not above 0 under the logarithm, for a pair without scores, and for bootstrapped
pairs, which nobody scored. A pair whose answers have changed places has −(s⁺ − s⁻).

The paper has the sigmoid alone. Other bases take the same shift, which for ``ipo`` is per token.
Collectives: none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from sera_plugin.config import SeraConfig
from sera_plugin.config.fields import Block, Float
from sera_plugin.data.margins import external_margins, missing_columns
from sera_plugin.runtime.errors import no_column
from sera_plugin.training.objective import Step
from sera_plugin.training.terms.reading import by_row
from sera_plugin.training.terms.term import Opening, Term, TermParts, noting


class OffsetConfig(Block):
    """How far the scores of the data push the answers of a pair apart."""

    alpha: Float = Field(
        default=1.0,
        ge=0,
        description="α, the weight of the offset, in the margin's unit.",
    )
    function: Literal["log", "identity"] = Field(
        default="log",
        description="f, what is taken of the difference of the scores; `log` is the paper's.",
    )


def offsets(scores: np.ndarray, settings: OffsetConfig) -> np.ndarray:
    """Δ of pairs, float64, shape (n,); 0 where there is none.

    Args:
        scores: s⁺ − s⁻, shape (n,), NaN where it is not known.
        settings: α and f.
    """
    found = np.where(np.isfinite(scores), scores, 0.0)
    if settings.function == "log":
        found = np.log(np.where(found > 0, found, 1.0))
    return np.asarray(settings.alpha * found)


class Offset(Term):
    """Takes the offset off the margin."""

    Settings = OffsetConfig
    paper = "2402.10571"
    reads_logits = False
    mixes_pairs = False

    settings: OffsetConfig

    def __init__(self, settings: OffsetConfig, parts: TermParts) -> None:
        super().__init__(settings, parts)
        self._scores = external_margins(parts.host.train, parts.config.selection.external)
        self._offsets: Mapping[str, float] = {}

    @classmethod
    def check_data(
        cls, settings: OffsetConfig, config: SeraConfig, cfg: Any, dataset: Any, tokenizer: Any
    ) -> None:
        for key, column in missing_columns(config.selection.external, dataset.column_names):
            key = f"sera.loss.offset needs scores, and sera.selection.external.{key}"
            raise no_column(key, column, dataset.column_names, "that holds them")

    def open_round(self, opening: Opening) -> None:
        scores, settings = self._scores, self.settings
        self._offsets = by_row(
            opening.dataset, offsets(scores, settings), offsets(-scores, settings)
        )

    def __call__(self, step: Step, prepared: Any) -> Step:
        offset = step.pairs([self._offsets[key] for key in step.keys])
        return replace(noting(step, offset__mean=offset), shift=step.shift - offset)
