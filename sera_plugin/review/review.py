"""One review: score the offline pairs, select, bootstrap, and compose the next round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sera_plugin.config import SeraConfig
from sera_plugin.data.margins import (
    PairLogps,
    check_numbers,
    ensemble,
    log_ratios,
    margins,
    positions,
    set_aside,
)
from sera_plugin.data.pairs import OfflineCompletions, OfflinePairs
from sera_plugin.data.rounds import Composition, compose
from sera_plugin.data.schedule import RoundSize
from sera_plugin.data.tables import ReviewTable
from sera_plugin.review.belief import Belief, believe
from sera_plugin.review.bootstrap import Bootstrapped, Bootstrapper, Past
from sera_plugin.review.lossdiff import Auxiliary
from sera_plugin.review.selection import Choice, History, choose
from sera_plugin.review.signals import SignalInput, measured
from sera_plugin.runtime.shards import REFERENCE, round_label
from sera_plugin.scoring.policies import Policies
from sera_plugin.scoring.recording import Recorded
from sera_plugin.scoring.scorer import Phase, Scorer, phase_of


@dataclass(frozen=True)
class Review:
    """The result of one review; ``evaluation_ratios`` has the log-ratios of the evaluation sets."""

    size: RoundSize
    table: ReviewTable
    choice: Choice
    history: History
    composition: Composition
    bootstrapped: Bootstrapped
    evaluation: Mapping[str, PairLogps]
    evaluation_ratios: Mapping[str, PairLogps]
    scoring: Phase
    generation: Phase
    belief: Belief | None = None


@dataclass(frozen=True)
class Reviewer:
    """Reviews D with the current policy. Every rank runs it and finds the same result.

    Attributes:
        config: the ``sera:`` block.
        pairs: D.
        evaluation: the evaluation sets by name.
        scorer: scores completions.
        policies: the models.
        bootstrapper: makes new pairs.
        seed: the run's seed.
        external: margins that the dataset carries, shape (n,), or None.
        auxiliary: the auxiliary policy's view of D, for LossDiff.
        contrast: the contrast of quality prompts, shape (n,), where it is a signal.
    """

    config: SeraConfig
    pairs: OfflinePairs
    evaluation: Mapping[str, OfflinePairs]
    scorer: Scorer
    policies: Policies
    bootstrapper: Bootstrapper
    seed: int
    external: np.ndarray | None = None
    auxiliary: Auxiliary | None = None
    contrast: np.ndarray | None = None

    def review(
        self,
        size: RoundSize,
        reference: PairLogps,
        evaluation_reference: Mapping[str, PairLogps],
        past: Past,
        recorded: Recorded | None = None,
    ) -> Review:
        """Compose round ``size.number``.

        Args:
            size: the planned sizes of the round.
            reference: log-probs of D under πref.
            evaluation_reference: log-probs of the evaluation sets under πref.
            past: what earlier reviews found.
            recorded: what training steps found; if given, D is not scored.
        """
        table, choice, history, belief, scoring = self._select(size, reference, past, recorded)
        # Before round 1 the policy is the reference, and no answer has a log-ratio.
        first = size.number == 1
        evaluation = dict(evaluation_reference) if first else {}
        ratios = {}
        for name, pairs in self.evaluation.items() if not first else ():
            evaluation[name], phase = self.score_offline(
                pairs, f"Scoring {name} pairs", label=round_label(size.number)
            )
            scoring += phase
            ratios[name] = log_ratios(evaluation[name], evaluation_reference[name])
            what = f"round {size.number}, pairs in {name}"
            check_numbers(ratios[name].finite, self.config.max_set_aside, what)
        ranked = [table.ids[i] for i in choice.ranked]
        flipped = {table.ids[i] for i in np.flatnonzero(choice.flipped)}
        fill = self.config.selection.fill
        made, generation, more = self.bootstrapper.run(
            size, table, reference, past, tuple(ratios.values())
        )
        composition = compose(
            ranked, size.kept, size.bootstrapped, made.pairs, flipped, table.doubted, fill
        )
        return Review(
            size=size,
            table=table,
            choice=choice,
            history=history,
            composition=composition,
            bootstrapped=made,
            evaluation=evaluation,
            evaluation_ratios=ratios,
            scoring=scoring + more,
            generation=generation,
            belief=belief,
        )

    def score_offline(
        self,
        pairs: OfflinePairs,
        description: str,
        *,
        under_reference: bool = False,
        label: str = REFERENCE,
    ) -> tuple[PairLogps, Phase]:
        """Log-probs of both answers of every pair under the policy or the reference.

        Args:
            pairs: what is scored.
            description: text of the progress bar.
            under_reference: whether the reference scores, not the policy.
            label: what the shards of the pass belong to.
        """
        start = time.perf_counter()
        policies = self.policies
        if under_reference:
            origin, model = policies.reference_origin(label), policies.reference()
        else:
            origin, model = policies.policy_origin(label), policies.policy()
        with model as forward:
            done = self.scorer.logps(forward, OfflineCompletions(pairs), description, origin)
        return pairs.pair_logps(done.logps), phase_of(start, done)

    def _under_policy(
        self, number: int, reference: PairLogps, recorded: Recorded | None
    ) -> tuple[PairLogps, np.ndarray, Phase]:
        """Log-probs of D under the policy, and the rounds in which they were measured."""
        if number == 1:
            start = reference.aligned(self.pairs.ids)
            return start, np.zeros(len(self.pairs), dtype=np.int32), Phase()
        if recorded is not None:
            return recorded.policy, recorded.measured_in, Phase()
        policy, phase = self.score_offline(
            self.pairs, f"Round {number}: scoring offline pairs", label=round_label(number)
        )
        return policy, np.full(len(self.pairs), number - 1, dtype=np.int32), phase

    def _select(
        self, size: RoundSize, reference: PairLogps, past: Past, recorded: Recorded | None
    ) -> tuple[ReviewTable, Choice, History, Belief | None, Phase]:
        policy, measured_in, phase = self._under_policy(size.number, reference, recorded)
        ratios = log_ratios(policy, reference)
        own = margins(
            ratios,
            self.pairs.chosen_tokens,
            self.pairs.rejected_tokens,
            self.config.selection.margin,
        )
        check_numbers(np.isfinite(own), self.config.max_set_aside, f"round {size.number}")
        before = None
        if past.table is not None:
            before = past.table.margin[positions(past.table.ids, self.pairs.ids)]
        mixed = set_aside(ensemble(own, before, self.config.ensemble))
        earlier = past.history
        history = History.of(
            [*(earlier.margin if earlier else ()), own],
            [*(earlier.ensembled if earlier else ()), mixed],
        )
        signals = self._signals(size.number, policy, reference, own)
        belief = self._belief(history.ensembled[-1], signals)
        choice = choose(
            self.pairs.ids,
            history,
            size.kept,
            self.config.selection,
            external=self.external,
            loss_difference=self._loss_difference(policy, reference),
            signals=signals,
            belief=belief,
            round_number=size.number,
            seed=self.seed,
        )
        table = ReviewTable(
            ids=self.pairs.ids,
            policy=policy,
            ratios=ratios,
            margin=own,
            ensembled=mixed,
            kept=choice.kept,
            score=choice.scores,
            flipped=choice.flipped,
            measured_in=measured_in,
            signals=signals,
            right=None if belief is None else belief.right,
            weight=None if belief is None else belief.weight,
        )
        return table, choice, history, belief, phase

    def _belief(self, margin: np.ndarray, signals: dict[str, np.ndarray]) -> Belief | None:
        """What pairs are judged by; None if it is the margin alone, and only ranks."""
        selection = self.config.selection
        if not selection.believes:
            return None
        sources = self.pairs.column(selection.sources) if selection.sources else None
        trusted = None
        if selection.trusted:
            trusted = np.array([value == 1 for value in self.pairs.column(selection.trusted)])
        return believe(selection, margin, signals, sources, trusted)

    def _signals(
        self, number: int, policy: PairLogps, reference: PairLogps, own: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The signals that the config names, measured for round ``number`` with its margins."""
        names = self.config.selection.measured
        if not names:
            return {}
        given = SignalInput(
            ids=self.pairs.ids,
            policy=policy,
            reference=reference.aligned(self.pairs.ids),
            ratios=log_ratios(policy, reference),
            margin=own,
            chosen_tokens=self.pairs.chosen_tokens,
            rejected_tokens=self.pairs.rejected_tokens,
            round_number=number,
            seed=self.seed,
            column=self.pairs.column,
            contrast=self.contrast,
            external=self.external,
        )
        return measured(names, given)

    def _loss_difference(self, policy: PairLogps, reference: PairLogps) -> np.ndarray | None:
        if self.auxiliary is None:
            return None
        return self.auxiliary.difference(policy, reference, self.pairs)
