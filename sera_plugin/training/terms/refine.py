"""The term ``refine``: Sr-DPO and Sr-IPO (arXiv 2405.21040); formulas in ``training.refinement``.

Collectives: those of scoring when a round opens, and one gather when it closes. With
``source: on_the_fly`` every rank makes one more forward pass per micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sera_plugin.config import RefineConfig, SeraConfig
from sera_plugin.data.columns import Refinement
from sera_plugin.data.margins import check_numbers
from sera_plugin.data.rounds import RoundRow
from sera_plugin.host.loading import chat_templates
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import gathered, shared
from sera_plugin.runtime.shards import REFERENCE, Origin, round_label
from sera_plugin.scoring.quality_pairs import QualityCompletions, QualityPairs
from sera_plugin.scoring.quality_prompt import QualityWriter, check_prompts, quality_text
from sera_plugin.training.objective import Step
from sera_plugin.training.refinement import bounded, delta_statistics, quality_margin
from sera_plugin.training.terms.term import Opening, Term, TermParts, noting

LOG = logger(__name__)

Logps = Mapping[str, tuple[float, float]]
"""Log-probs of both answers by the row's key."""


@dataclass(frozen=True)
class OpenRound:
    """What Δ of a round is found from.

    Attributes:
        rows: the round's rows by key.
        policy: log πθ(y|p⊕x) of the policy at the round's start; None if every step finds them.
        reference: log πref(y|p⊕x); None if Δ has another baseline.
    """

    rows: Mapping[str, RoundRow]
    policy: Logps | None
    reference: Logps | None


class Refine(Term):
    """Takes λ·Δ off the margin."""

    Settings = RefineConfig
    bases = ("sigmoid", "ipo")
    paper = "2405.21040"
    reads_logits = False
    mixes_pairs = False

    settings: RefineConfig

    def __init__(self, settings: RefineConfig, parts: TermParts) -> None:
        super().__init__(settings, parts)
        host = parts.host
        templates = chat_templates(host.cfg, host.tokenizer)
        text = quality_text(settings.prompt)
        writer = QualityWriter.of(text, settings.placement, host.tokenizer, templates)
        scores = parts.config.selection.external
        self._prompt = writer.quality
        self.quality = QualityPairs.of(parts.pairs, host.train, writer, host.max_length, scores)
        self.tokens = self.quality.tokens
        self._per_token = parts.base.per_token or settings.normalize == "length"
        self._noted: list[np.ndarray] = []
        self._seconds: dict[str, float] = {}
        self._open = OpenRound({}, None, None)
        warning = runs_away(settings, parts.base.per_token, host.beta)
        if warning and host.accelerator.is_main_process:
            LOG.warning("%s", warning)

    @classmethod
    def check(cls, settings: RefineConfig, config: SeraConfig, cfg: Any) -> None:
        quality_text(settings.prompt)

    @classmethod
    def check_data(
        cls, settings: RefineConfig, config: SeraConfig, cfg: Any, dataset: Any, tokenizer: Any
    ) -> None:
        templates = chat_templates(cfg, tokenizer)
        text = quality_text(settings.prompt)
        writer = QualityWriter.of(text, settings.placement, tokenizer, templates)
        check_prompts(writer, dataset, cfg.sequence_len)

    def identity(self) -> dict[str, Any]:
        return {"quality_prompt": self._prompt, "delta_baseline": self.settings.baseline}

    def open_round(self, opening: Opening) -> None:
        """Find what is stored about the round, or score it.

        Raises:
            StoreError: if the stored log-probs of a resumed round are missing or damaged.
            BadNumbersError: if too many log-probs are not finite numbers.
        """
        rows = opening.dataset.rows
        unfit = sum(not self.quality.fits(row) for row in rows)
        if unfit:
            LOG.warning(
                "Round %d: %d of %d pairs train without Δ, because p⊕x and an answer don't fit "
                "sequence_len.", opening.number, unfit, len(rows),
            )  # fmt: skip
        by_key = {row.key: row for row in rows}
        if not self._by_policy and not self._by_reference:
            self._open = OpenRound(by_key, None, None)
            return
        start = time.perf_counter()
        number, store = opening.number, self.parts.store
        if opening.resumed:
            table = shared(lambda: store.read_refinement(number))
        else:
            table = self._score(number, rows)
            if self.parts.host.accelerator.is_main_process:
                store.write_refinement(number, table)
            self.parts.host.accelerator.wait_for_everyone()
            self._seconds = {"seconds_refining": time.perf_counter() - start}
        self._open = OpenRound(
            by_key,
            _read(table, _POLICY) if self._by_policy else None,
            _read(table, _REFERENCE) if self._by_reference else None,
        )

    @property
    def _by_policy(self) -> bool:
        return self.settings.source == "round"

    @property
    def _by_reference(self) -> bool:
        return self.settings.baseline == "reference"

    def _score(self, number: int, rows: Sequence[RoundRow]) -> pa.Table:
        """The rows of a round that p⊕x fits, as ``refinement.parquet`` keeps them."""
        fitting = [row for row in rows if self.quality.fits(row)]
        nothing = np.full((len(fitting), 2), np.nan)
        policy = self._under_policy(number, fitting) if self._by_policy else nothing
        reference = self._under_reference(number, fitting) if self._by_reference else nothing
        return pa.table(
            [[row.key for row in fitting], *policy.T, *reference.T], schema=Refinement.arrow()
        )

    def _under_policy(self, number: int, rows: Sequence[RoundRow]) -> np.ndarray:
        policies = self.parts.policies
        origin = policies.policy_origin(round_label(number))
        with policies.policy() as forward:
            return self._logps(forward, rows, f"Round {number}: Δ", origin)

    def _under_reference(self, number: int, rows: Sequence[RoundRow]) -> np.ndarray:
        """log πref(y|p⊕x) of rows: of D from one pass, of bootstrapped pairs from another."""
        offline = self._reference_of_round(number) if self._moves else self._reference_of_run
        fresh = [row for row in rows if row.chosen_ids is not None]
        policies, found = self.parts.policies, {}
        if fresh:
            origin = policies.reference_origin(round_label(number))
            with policies.reference() as forward:
                logps = self._logps(forward, fresh, f"Round {number}: πref of Δ", origin)
            found = dict(zip([row.key for row in fresh], logps, strict=True))
        return np.array(
            [
                found[row.key]
                if row.key in found
                else offline[row.example_id][:: -1 if row.flipped else 1]
                for row in rows
            ]
        ).reshape(-1, 2)

    @property
    def _moves(self) -> bool:
        return self.parts.config.reference == "previous"

    @cached_property
    def _reference_of_run(self) -> dict[str, np.ndarray]:
        return self._reference_of_offline(REFERENCE)

    def _reference_of_round(self, number: int) -> dict[str, np.ndarray]:
        return self._reference_of_offline(round_label(number))

    def _reference_of_offline(self, label: str) -> dict[str, np.ndarray]:
        """log πref(y|p⊕x) of the pairs of D that p⊕x fits, by example id."""
        every = [RoundRow(f"{i}/offline", i) for i in self.parts.pairs.ids]
        rows = [row for row in every if self.quality.fits(row)]
        policies = self.parts.policies
        origin = policies.reference_origin(label)
        with policies.reference() as forward:
            logps = self._logps(forward, rows, "Reference log-probs with the prompt of Δ", origin)
        return dict(zip([row.example_id for row in rows], logps, strict=True))

    def _logps(
        self, forward: Any, rows: Sequence[RoundRow], words: str, origin: Origin
    ) -> np.ndarray:
        """Log-probs of both answers behind p⊕x, shape (rows, 2), every rank alike."""
        if not rows:
            return np.zeros((0, 2))
        answers = QualityCompletions(self.quality, rows)
        logps = self.parts.scorer.logps(forward, answers, words, origin).logps.reshape(-1, 2)
        finite = np.isfinite(logps).all(axis=1)
        check_numbers(finite, self.parts.config.max_set_aside, words)
        return logps

    def prepare(self, keys: Sequence[str]) -> torch.Tensor:
        """log πθ(y|p⊕x) of both answers, float64, shape (n, 2); NaN where p⊕x doesn't fit."""
        if self._open.policy is not None:
            return _of(keys, self._open.policy)
        rows = [self._open.rows[key] for key in keys]
        behind = [answer for row in rows for answer in self.quality.completions(row)]
        with self.parts.policies.policy() as forward:
            logps = self.parts.scorer.own_logps(forward, behind).reshape(-1, 2)
        logps[[not self.quality.fits(row) for row in rows]] = np.nan
        return torch.from_numpy(logps)

    def __call__(self, step: Step, prepared: torch.Tensor) -> Step:
        delta = quality_margin(
            prepared.to(step.policy.device),
            self._baseline(step).to(prepared.dtype),
            step.tokens,
            step.beta,
            per_token=self._per_token,
        )
        counts = torch.isfinite(delta)
        delta = torch.where(counts, delta, torch.zeros_like(delta))
        rho = step.pairs(bounded(delta, self.settings.weight, self.settings.clip))
        self._note(step, delta, counts)
        noted = noting(step, refine__delta=delta, refine__rho=rho)
        return replace(noted, shift=step.shift - rho)

    def _baseline(self, step: Step) -> torch.Tensor:
        if self._open.reference is not None:
            return _of(step.keys, self._open.reference).to(step.policy.device)
        if self.settings.baseline == "plain":
            return step.policy.detach()
        return torch.zeros_like(step.reference)

    def _note(self, step: Step, delta: torch.Tensor, counts: torch.Tensor) -> None:
        ratios = step.ratios.detach()
        rows = [self._open.rows[key] for key in step.keys]
        self._noted.append(
            np.column_stack(
                [
                    delta.cpu().numpy(),
                    (step.beta * (ratios[:, 0] - ratios[:, 1])).double().cpu().numpy(),
                    [self.quality.score(row) for row in rows],
                    counts.cpu().numpy(),
                ]
            )
        )

    def close_round(self) -> dict[str, float]:
        """Statistics of the updates since the round began, or since the run was resumed in it."""
        mine = np.concatenate(self._noted) if self._noted else np.zeros((0, 4))
        self._noted = []
        rows = np.concatenate(gathered([mine]))
        counts = rows[:, 3] > 0
        found = delta_statistics(*rows[counts, :3].T)
        found["unrefined"] = float((~counts).sum())
        found |= self._seconds
        self._seconds = {}
        return found


_POLICY = (Refinement.QUALITY_CHOSEN_LOGP, Refinement.QUALITY_REJECTED_LOGP)
_REFERENCE = (Refinement.REFERENCE_CHOSEN_LOGP, Refinement.REFERENCE_REJECTED_LOGP)


def _read(table: pa.Table, columns: Sequence[Refinement]) -> Logps:
    sides = zip(*(table[column].to_pylist() for column in columns), strict=True)
    return dict(zip(table[Refinement.KEY].to_pylist(), sides, strict=True))


def _of(keys: Sequence[str], logps: Logps) -> torch.Tensor:
    """The log-probs of rows, NaN where there are none, float64, shape (n, 2)."""
    none = (float("nan"), float("nan"))
    return torch.tensor([logps.get(key, none) for key in keys], dtype=torch.float64).reshape(-1, 2)


def runs_away(config: RefineConfig, per_token: bool, beta: float) -> str | None:
    """Why learning a pair may raise what is asked of it as fast as its margin, if it may.

    What makes y⁺ likelier after x makes it likelier after p⊕x too. If both log-ratios rise alike,
    the margin rises by m and λ·Δ by λ·m, or by λ·β·m where the margin is per token.
    """
    free = config.clip is None and config.source == "on_the_fly" and config.baseline != "plain"
    unlike = config.normalize == "length" and not per_token
    most = 1 / beta if per_token else 1.0
    if not free or unlike or config.weight < most:
        return None
    return (
        f"sera.refine.weight: {config.weight:g} is not below {most:g}, so a pair may ask for ever "
        "more as it is learned; use a smaller weight, clip, normalize: length or source: round."
    )
