"""The contrast of quality prompts: which answer the reference prefers when asked for a good one.

For a pair, and prompts p⁺ and p⁻ that ask for opposite things,

    s = [log πref(y⁺|p⁺⊕x) − log πref(y⁺|p⁻⊕x)] − [the same for y⁻]

Labels don't enter s, nor does the trained policy. Close to the contrastive prompts of DLMA (arXiv
2402.11907). Collectives: those of scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sera_plugin.config.contrast import ContrastConfig, ContrastPrompts
from sera_plugin.config.external import ExternalConfig
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import RoundRow
from sera_plugin.runtime.shards import REFERENCE
from sera_plugin.scoring.policies import Policies
from sera_plugin.scoring.quality_pairs import QualityCompletions, QualityPairs
from sera_plugin.scoring.quality_prompt import QualityWriter, opposite_writers
from sera_plugin.scoring.scorer import Scorer


@dataclass(frozen=True)
class Contrast:
    """Measures the contrast of the pairs of D. Every rank must call it alike.

    Attributes:
        config: the ``sera.selection.contrast`` block.
        pairs: D.
        dataset: its rows as TRL prepared them.
        tokenizer: the run's tokenizer.
        templates: the chat templates that may have written the prompts.
        scorer: scores completions.
        policies: the models.
        max_length: most tokens of prompt and answer; None for no bound.
    """

    config: ContrastConfig
    pairs: OfflinePairs
    dataset: Any
    tokenizer: Any
    templates: Sequence[str]
    scorer: Scorer
    policies: Policies
    max_length: int | None

    def measured(self) -> np.ndarray:
        """s of each pair, float64, shape (n,); NaN where a prompt and an answer have no room."""
        found = [self._of(asked) for asked in self.config.asked]
        return combined(found)

    def _of(self, asked: ContrastPrompts) -> np.ndarray:
        positive, negative = opposite_writers(asked, self.tokenizer, self.templates)
        raised = self._logps(positive) - self._logps(negative)
        if self.config.normalize == "length":
            raised = raised / np.maximum(
                1, np.stack([self.pairs.chosen_tokens, self.pairs.rejected_tokens], axis=1)
            )
        return np.asarray(raised[:, 0] - raised[:, 1])

    def _logps(self, writer: QualityWriter | None) -> np.ndarray:
        """log πref of both answers behind a prompt, or behind x alone, shape (n, 2)."""
        rows = [RoundRow(f"{i}/offline", i) for i in self.pairs.ids]
        if writer is None:
            prompts = [np.asarray(ids, np.int32) for ids in self.pairs.dataset["prompt_ids"]]
            nothing = np.full(len(self.pairs), np.nan)
            quality = QualityPairs(self.pairs, prompts, nothing, self.max_length or 2**31)
        else:
            quality = QualityPairs.of(
                self.pairs, self.dataset, writer, self.max_length, ExternalConfig()
            )
        fits = np.array([quality.fits(row) for row in rows])
        found = np.full((len(rows), 2), np.nan)
        fitting = [row for row, room in zip(rows, fits, strict=True) if room]
        if not fitting:
            return found
        answers = QualityCompletions(quality, fitting)
        origin = self.policies.reference_origin(REFERENCE)
        with self.policies.reference() as forward:
            logps = self.scorer.logps(forward, answers, "Contrast of prompts", origin).logps
        found[fits] = logps.reshape(-1, 2)
        return found


def combined(contrasts: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of contrasts, each divided by its root mean square; pure.

    One contrast stays as it is, in nats. A pair that lacks one has none.

    Args:
        contrasts: each of shape (n,), NaN where there is none.
    """
    if len(contrasts) == 1:
        return contrasts[0]
    scaled = []
    for values in contrasts:
        finite = values[np.isfinite(values)]
        scale = float(np.sqrt(np.mean(finite**2))) if len(finite) else 0.0
        scaled.append(values / (scale or 1.0))
    return np.asarray(np.mean(scaled, axis=0))
