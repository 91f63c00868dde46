"""Δ of the pairs that are trained on: by the policy of each step, or once per round, stored.

Collectives: those of ``scoring``, and small gathers per micro-batch for what is logged. Every rank
makes the same number of forward passes: with ``source: on_the_fly`` one more per micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sera_plugin.config import RefineConfig, SeraConfig
from sera_plugin.data.columns import Refinement
from sera_plugin.data.margins import check_numbers
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import RoundDataset
from sera_plugin.data.store import RunStore
from sera_plugin.host.facts import HostRun
from sera_plugin.host.loading import chat_templates
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import shared
from sera_plugin.runtime.shards import round_label
from sera_plugin.scoring.logps import answer_logps
from sera_plugin.scoring.policies import Policies
from sera_plugin.scoring.scorer import Scorer, evaluating
from sera_plugin.training.quality_pairs import (
    QualityCompletions,
    QualityPairs,
    RefinedRound,
)
from sera_plugin.training.quality_prompt import QualityWriter
from sera_plugin.training.refinement import bounded, gap_statistics, quality_gap, reference_shift

LOG = logger(__name__)


@dataclass
class Refiner:
    """Finds Δ for the batches of a run and keeps its statistics per round.

    Attributes:
        config: the ``refine`` block.
        quality: D with p⊕x.
        quality_prompt: the text of p.
        scorer: scores completions, with the trainer's accelerator.
        policies: the models.
        store: where the log-probs of ``source: round`` are written.
        loss: ``sigmoid`` or ``ipo``.
        beta: β.
        max_set_aside: share of the pairs of a round whose log-probs may not be finite numbers.
    """

    config: RefineConfig
    quality: QualityPairs
    quality_prompt: str
    scorer: Scorer
    policies: Policies
    store: RunStore
    loss: str
    beta: float
    max_set_aside: float

    def __post_init__(self) -> None:
        self._accelerator = self.scorer.accelerator
        self._noted: list[np.ndarray] = []
        self._last: tuple[torch.Tensor, ...] = ()
        self._seconds: dict[str, float] = {}

    def open_round(self, number: int, dataset: RoundDataset, *, resumed: bool) -> RefinedRound:
        """The round with what Δ is found from.

        Args:
            number: the round.
            dataset: its pairs.
            resumed: whether updates of this round are done already.

        Raises:
            StoreError: if the stored log-probs of a resumed round are missing or damaged.
            BadNumbersError: if too many log-probs are not finite numbers.
        """
        unfit = sum(not self.quality.fits(row) for row in dataset.rows)
        if unfit:
            LOG.warning(
                "Round %d: %d of %d pairs train without Δ, because p⊕x and an answer don't fit "
                "sequence_len.", number, unfit, len(dataset),
            )  # fmt: skip
        if self.config.source == "on_the_fly":
            return RefinedRound(dataset, self.quality, None)
        start = time.perf_counter()
        if resumed:
            table = shared(lambda: self.store.read_refinement(number))
        else:
            table = self._score(number, dataset)
            if self._accelerator.is_main_process:
                self.store.write_refinement(number, table)
            self._accelerator.wait_for_everyone()
            self._seconds = {"seconds_refining": time.perf_counter() - start}
        keys, chosen, rejected = (table[column].to_pylist() for column in Refinement)
        logps = {
            key: (q_chosen, q_rejected)
            for key, q_chosen, q_rejected in zip(keys, chosen, rejected, strict=True)
            if np.isfinite(q_chosen) and np.isfinite(q_rejected)
        }
        return RefinedRound(dataset, self.quality, logps)

    def _score(self, number: int, dataset: RoundDataset) -> pa.Table:
        rows = [i for i, row in enumerate(dataset.rows) if self.quality.fits(row)]
        answers = QualityCompletions(self.quality, dataset, rows)
        origin = self.policies.policy_origin(round_label(number))
        with self.policies.policy() as forward:
            logps = self.scorer.logps(forward, answers, f"Round {number}: Δ", origin).logps
        check_numbers(
            np.isfinite(logps[0::2] - logps[1::2]), self.max_set_aside, f"Δ of round {number}"
        )
        keys = [dataset.rows[i].key for i in rows]
        return pa.table([keys, logps[0::2], logps[1::2]], schema=Refinement.arrow())

    def shift(
        self, model: torch.nn.Module, given: Mapping[str, Any], tokens: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """What the loss adds to log πref of the chosen answers, and numbers to log.

        Args:
            model: the wrapped policy as it is now.
            given: what the batch holds under ``REFINEMENT``.
            tokens: lengths of the chosen and of the rejected answers.
        """
        if "input_ids" in given:
            with evaluating(model):
                found = answer_logps(
                    model,
                    {name: given[name] for name in ("input_ids", "attention_mask")},
                    given["completion_mask"],
                    given["first"],
                )
            chosen, rejected = found.chunk(2)
        else:
            chosen, rejected = given["chosen"], given["rejected"]
        per_token = self.loss == "ipo" or self.config.normalize == "length"
        delta = quality_gap(chosen, rejected, *tokens, per_token=per_token)
        counts = given["fits"] & torch.isfinite(delta)
        delta = torch.where(counts, delta, torch.zeros_like(delta))
        rho = bounded(delta, self.config.weight, self.config.clip)
        self._last = (delta, given["score"], counts)
        noted = {"refine/delta": delta, "refine/rho": rho}
        means = {k: self._accelerator.gather(v).mean().item() for k, v in noted.items()}
        return reference_shift(rho, self.loss, self.beta, tokens[0]), means

    def note(self, margins: torch.Tensor) -> None:
        """Keep the last batch's Δ with its true margins h, shape (pairs,)."""
        delta, score, counts = self._last
        row = torch.stack([delta, margins.to(delta), score, counts.to(delta)], dim=1)
        self._noted.append(self._accelerator.gather(row).cpu().numpy())

    def close_round(self) -> dict[str, float]:
        """Statistics of the updates since the round began, or since the run was resumed in it."""
        rows = np.concatenate(self._noted) if self._noted else np.zeros((0, 4))
        self._noted = []
        counts = rows[:, 3] > 0
        found = gap_statistics(*rows[counts, :3].T)
        found["unrefined"] = float((~counts).sum())
        found |= self._seconds
        self._seconds = {}
        return found


def may_run_away(config: RefineConfig, loss: str, beta: float) -> bool:
    """Whether learning a pair may raise what is asked of it as fast as its margin.

    What makes y⁺ likelier after x makes it likelier after p⊕x too. If both log-ratios rise alike by
    one nat, h rises by β and −λ·Δ by λ; IPO's margin rises by 1/|y⁺| and −λ·Δ by λ/|y⁺|.
    """
    free = config.clip is None and config.source == "on_the_fly"
    if loss == "ipo":
        return free and config.weight >= 1
    return free and config.normalize == "none" and config.weight >= beta


def refiner_of(
    config: SeraConfig,
    host: HostRun,
    pairs: OfflinePairs,
    scorer: Scorer,
    policies: Policies,
    store: RunStore,
) -> Refiner | None:
    """The refiner of a run, or None if the run has no refinement."""
    refine = config.refinement
    if refine is None:
        return None
    loss = host.loss_types[0]
    if host.accelerator.is_main_process and may_run_away(refine, loss, host.beta):
        LOG.warning(
            "sera.refine.weight: %s is not below %s, so a pair may ask for ever more as it is "
            "learned; use a smaller weight, clip, normalize: length or source: round.",
            refine.weight,
            "1" if loss == "ipo" else f"rl_beta: {host.beta}",
        )
    templates = chat_templates(host.cfg, host.tokenizer)
    writer = QualityWriter.of(refine, host.tokenizer, templates)
    scores = config.selection.external
    quality = QualityPairs.of(pairs, host.train, writer, host.max_length, scores)
    return Refiner(
        config=refine,
        quality=quality,
        quality_prompt=writer.quality,
        scorer=scorer,
        policies=policies,
        store=store,
        loss=loss,
        beta=host.beta,
        max_set_aside=config.max_set_aside,
    )
