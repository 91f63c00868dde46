"""The contrast of quality prompts: which answer the reference prefers when asked for a good one.

For a pair of answers, and prompts p⁺ and p⁻ that ask for opposite things,

    s = [log πref(y⁺|p⁺⊕x) − log πref(y⁺|p⁻⊕x)] − [the same for y⁻]

Labels don't enter s, nor does the trained policy. Close to the contrastive prompts of DLMA (arXiv
2402.11907). Collectives: those of scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sera_plugin.config.contrast import ContrastConfig, ContrastPrompts
from sera_plugin.config.external import ExternalConfig
from sera_plugin.data.candidates import Pool
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import RoundRow
from sera_plugin.runtime.shards import REFERENCE
from sera_plugin.scoring.completions import CompletionList, Completions
from sera_plugin.scoring.quality_pairs import QualityCompletions, QualityPairs, prompts_with
from sera_plugin.scoring.quality_prompt import QualityWriter, opposite_writers
from sera_plugin.scoring.scorer import Scorer

if TYPE_CHECKING:
    from sera_plugin.scoring.policies import Policies

SAMPLE = 64
"""Prompts of D that an estimate of what the contrast takes looks at."""


@dataclass(frozen=True)
class Contrast:
    """Measures the contrast of the pairs of D and of sampled answers. Ranks must call it alike.

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

    def asked_tokens(self) -> tuple[float, ...]:
        """Mean tokens of a prompt of D with p in it, one per pass; from the first few prompts."""
        few = range(min(SAMPLE, len(self.pairs)))
        ids, dataset = [self.pairs.ids[row] for row in few], self.dataset.select(few)
        usual = self.pairs.prompt_tokens
        return tuple(
            float(
                usual.mean()
                + np.mean([len(prompt) for prompt in prompts])
                - usual[: len(few)].mean()
            )
            for asked in self.config.asked
            for writer in self._writers(asked)
            if writer is not None
            for prompts in [prompts_with(writer, dataset, ids)]
        )

    def measured(self, reference: PairLogps) -> np.ndarray:
        """s of each pair, float64, shape (n,); NaN where a prompt and an answer have no room.

        Args:
            reference: log-probs of D under πref, behind x alone.
        """
        plain = reference.aligned(self.pairs.ids)
        alone = np.stack([plain.chosen, plain.rejected], axis=1)
        tokens = np.stack([self.pairs.chosen_tokens, self.pairs.rejected_tokens], axis=1)
        found = []
        for asked in self.config.asked:
            positive, negative = self._writers(asked)
            raised = self._logps(positive)
            raised = raised - (alone if negative is None else self._logps(negative))
            raised = self._normalized(raised, tokens)
            found.append(raised[:, 0] - raised[:, 1])
        return combined(found)

    def of_pools(self, pools: Sequence[Pool], label: str) -> np.ndarray:
        """log πref(y|p⁺⊕x) − log πref(y|p⁻⊕x) of every candidate, in the order of the pools.

        Of several prompts each is divided by the root mean square of its deviations from its
        pools' means, and they are averaged. float64, shape (n,); NaN where a prompt and an answer
        have no room.

        Args:
            pools: the answers that compete.
            label: what the shards of the passes belong to.
        """
        sizes = np.array([len(pool.candidates) for pool in pools], dtype=np.int64)
        owners = np.repeat(np.arange(len(pools)), sizes)
        answers = [candidate for pool in pools for candidate in pool.candidates]
        alone = np.array([answer.reference_logp for answer in answers], dtype=np.float64)
        tokens = np.array([len(answer.token_ids) for answer in answers], dtype=np.int64)
        found = []
        for asked in self.config.asked:
            positive, negative = self._writers(asked)
            raised = self._logps_of(positive, pools, label)
            raised = raised - (
                alone if negative is None else self._logps_of(negative, pools, label)
            )
            found.append(self._normalized(raised, tokens))
        return combined(found, [values - _means(values, owners) for values in found])

    def _writers(self, asked: ContrastPrompts) -> tuple[QualityWriter, QualityWriter | None]:
        return opposite_writers(asked, self.tokenizer, self.templates)

    def _normalized(self, logps: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        per_token = self.config.normalize == "length"
        return np.asarray(logps / np.maximum(1, tokens) if per_token else logps)

    def _logps(self, writer: QualityWriter) -> np.ndarray:
        """log πref of both answers of D behind a prompt, shape (n, 2)."""
        rows = [RoundRow(f"{i}/offline", i) for i in self.pairs.ids]
        quality = QualityPairs.of(
            self.pairs, self.dataset, writer, self.max_length, ExternalConfig()
        )
        fits = np.array([quality.fits(row) for row in rows])
        fitting = [row for row, room in zip(rows, fits, strict=True) if room]
        found = np.full((len(rows), 2), np.nan)
        found[fits] = self._scored(QualityCompletions(quality, fitting), REFERENCE).reshape(-1, 2)
        return found

    def _logps_of(self, writer: QualityWriter, pools: Sequence[Pool], label: str) -> np.ndarray:
        """log πref of every candidate behind a prompt, shape (n,)."""
        ids = [pool.example_id for pool in pools]
        asked = self.dataset.select([self.pairs.position[example_id] for example_id in ids])
        rows = [
            (prompt, candidate.token_ids)
            for prompt, pool in zip(prompts_with(writer, asked, ids), pools, strict=True)
            for candidate in pool.candidates
        ]
        most = self.max_length or 2**31
        fits = np.array([len(prompt) + len(answer) <= most for prompt, answer in rows], dtype=bool)
        fitting = [row for row, room in zip(rows, fits, strict=True) if room]
        found = np.full(len(rows), np.nan)
        found[fits] = self._scored(CompletionList(fitting), label)
        return found

    def _scored(self, answers: Completions, label: str) -> np.ndarray:
        if not len(answers.lengths):
            return np.zeros(0)
        origin = self.policies.reference_origin(label)
        with self.policies.reference() as forward:
            return self.scorer.logps(forward, answers, "Contrast of prompts", origin).logps


def combined(
    contrasts: Sequence[np.ndarray], differences: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """The mean of contrasts, each divided by the root mean square of its differences; pure.

    One contrast stays as it is, in nats. An entry that lacks one has none.

    Args:
        contrasts: each of shape (n,), NaN where there is none.
        differences: what is told apart by each, in nats; the contrasts themselves if None.
    """
    if len(contrasts) == 1:
        return contrasts[0]
    scaled = []
    for values, apart in zip(contrasts, differences or contrasts, strict=True):
        finite = apart[np.isfinite(apart)]
        scale = float(np.sqrt(np.mean(finite**2))) if len(finite) else 0.0
        scaled.append(values / (scale or 1.0))
    return np.asarray(np.mean(scaled, axis=0))


def _means(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """The mean of the finite values of each owner, at every entry; NaN where it has none."""
    known = np.isfinite(values)
    count = int(owners.max(initial=-1)) + 1
    sums = np.bincount(owners[known], values[known], count)
    with np.errstate(invalid="ignore"):
        return np.asarray((sums / np.bincount(owners[known], minlength=count))[owners])
