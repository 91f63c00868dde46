"""Bootstrapping with models: sample prompts, score the answers, pair best against worst."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sera_plugin.config import SeraConfig
from sera_plugin.data.candidates import BootstrappedPair, Candidate, Pool, Prompt, Source
from sera_plugin.data.ids import permutation
from sera_plugin.data.margins import PairLogps, check_numbers, ensemble
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.schedule import RoundSize, share_of
from sera_plugin.data.tables import ReviewTable
from sera_plugin.review.guard import Decision, decide, measure
from sera_plugin.review.judging import Court
from sera_plugin.review.pairing import (
    Rejection,
    Sampled,
    SampleStats,
    Shortfall,
    Written,
    balanced_penalty,
    bootstrap,
    by_answer,
    distinct,
    for_the_guard,
    keep_top,
)
from sera_plugin.review.selection import History
from sera_plugin.runtime.shards import round_label
from sera_plugin.sampling.sampler import Sampler
from sera_plugin.sampling.settings import Serving
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.known import completed
from sera_plugin.scoring.policies import Policies
from sera_plugin.scoring.scorer import Phase, Scored, Scorer, phase_of
from sera_plugin.scoring.snapshot import Snapshot


@dataclass(frozen=True)
class Bootstrapped:
    """What bootstrapping did: all pools, the pairs kept, α, and why pools gave no pair.

    ``left_out`` pairs would have been kept without the guard; without samples there is no
    decision.
    """

    pools: tuple[Pool, ...]
    pairs: tuple[BootstrappedPair, ...]
    penalty: float
    short: Mapping[Shortfall, int]
    without_room: int
    samples: SampleStats | None
    decision: Decision | None = None
    left_out: int = 0


@dataclass(frozen=True)
class Past:
    """What a review takes from earlier ones.

    Attributes:
        table: the previous review, or None at the first.
        policy: the previous review's policy, if candidates are ensembled too.
        history: margins of the earlier reviews, where the rule of selection needs them.
        first_spread: the guard's ``spread`` at the first review, or None there.
    """

    table: ReviewTable | None = None
    policy: Snapshot | None = None
    history: History | None = None
    first_spread: float | None = None


@dataclass(frozen=True)
class Bootstrapper:
    """Makes new pairs from sampled answers. Every rank runs it and finds the same.

    Attributes:
        config: the ``sera:`` block.
        pairs: D.
        scorer: scores completions.
        sampler: samples candidates.
        policies: the models.
        seed: the run's seed.
        beta: β of the loss.
        court: the user's own judge, or None.
    """

    config: SeraConfig
    pairs: OfflinePairs
    scorer: Scorer
    sampler: Sampler
    policies: Policies
    seed: int
    beta: float
    court: Court | None = None

    def run(
        self,
        size: RoundSize,
        table: ReviewTable,
        reference: PairLogps,
        past: Past,
        evaluation_ratios: Sequence[PairLogps] = (),
    ) -> tuple[Bootstrapped, Phase, Phase]:
        """Bootstrap for round ``size.number``; also the generation and the scoring phase.

        Args:
            size: the planned sizes of the round.
            table: this round's review of the offline pairs.
            reference: log-probs of D under πref.
            past: what earlier reviews found.
            evaluation_ratios: log-ratios of the evaluation sets.
        """
        if size.bootstrapped == 0:
            return Bootstrapped((), (), 0.0, {}, 0, None), Phase(), Phase()
        prompts, without_room = self._prompts(size.number)
        label = round_label(size.number)
        written, generation = self._sample(prompts, size.number, label)
        candidates, scoring, bad = self._score(prompts, written, label)
        samples = SampleStats.of(written, candidates, bad)
        if past.policy is not None:
            candidates, more = self._mix_previous(prompts, candidates, past.policy, label)
            scoring += more
        offline = self._offline_candidates(prompts, table, reference, past)
        pools = tuple(
            Pool(p.example_id, distinct((*candidates[p.example_id], *offline[p.example_id])))
            for p in prompts
        )
        settings = self.config.bootstrap
        guard = settings.guard
        if self.court is not None:
            pools = self.court.pools(pools, prompts, label)
            # The guard asks whether the implicit reward can be trusted, which then ranks nothing.
            guard = guard.model_copy(update={"enabled": False}) if self.court.replaces else guard
        rejection = Rejection(settings.rejected, self.seed, size.number)
        penalty = settings.length_penalty
        if penalty == "auto":
            penalty = balanced_penalty(pools, self.beta, rejection)
        pairs, short = bootstrap(pools, self.beta, penalty, rejection)
        answers = for_the_guard(written, candidates, self.beta, penalty)
        margins = np.concatenate(
            [(r.chosen - r.rejected)[r.finite] for r in evaluation_ratios] or [np.zeros(0)]
        )
        decision = decide(measure(answers, margins, past.first_spread), guard)
        kept = tuple(keep_top(pairs, decision.limit(size.bootstrapped)))
        left_out = min(len(pairs), size.bootstrapped) - len(kept)
        done = Bootstrapped(pools, kept, penalty, short, without_room, samples, decision, left_out)
        return done, generation, scoring

    def _sample(
        self, prompts: list[Prompt], round_number: int, label: str
    ) -> tuple[Written, Phase]:
        """All candidates, by who writes them."""
        start = time.perf_counter()
        written: dict[Source, Sampled] = {}
        for settings in self.sampler.settings.shared_out(self.config.bootstrap.sampler):
            origin = self.policies.origin(settings.writer, label)
            sampler = replace(self.sampler, settings=settings)
            serving = Serving(
                self.policies, self.scorer, self.pairs, settings.writer, settings.sequence_len
            )
            with sampler.engine.serving(serving) as (model, synced):
                written[settings.writer] = sampler.completions(
                    model, prompts, self.seed, round_number, synced=synced, origin=origin
                )
        sampled = sum(
            len(answer.token_ids)
            for rollouts in written.values()
            for answers in rollouts.values()
            for answer in answers
        )
        return written, Phase(time.perf_counter() - start, sampled, sampled)

    def _prompts(self, round_number: int) -> tuple[list[Prompt], int]:
        """The prompts to sample, chosen by (seed, round, example), and how many have no room."""
        count = share_of(self.config.bootstrap.prompts, len(self.pairs))
        order = permutation(self.pairs.ids, self.seed, round_number, "prompts")
        chosen = sorted(int(row) for row in order[:count])
        has_room = [
            row
            for row in chosen
            if self.sampler.settings.room(int(self.pairs.prompt_tokens[row])) > 0
        ]
        prompts = [
            Prompt(self.pairs.ids[row], tuple(self.pairs.dataset[row]["prompt_ids"]))
            for row in has_room
        ]
        return prompts, len(chosen) - len(has_room)

    def _score(
        self, prompts: list[Prompt], written: Written, label: str
    ) -> tuple[dict[str, list[Candidate]], Phase, int]:
        """Candidates of every prompt, the phase, and how many answers were set aside."""
        start = time.perf_counter()
        flat = [
            (prompt, answer, writer)
            for prompt in prompts
            for answer, writer in by_answer(written, prompt.example_id).items()
            if len(answer.token_ids) > (len(self.sampler.settings.ending) if answer.finished else 0)
        ]
        rows = [(prompt.token_ids, answer.token_ids) for prompt, answer, _ in flat]
        known = {
            source: [answer.logp if writer is source else None for _, answer, writer in flat]
            for source in (Source.POLICY, Source.REFERENCE)
        }
        policies = self.policies
        origin = policies.policy_origin(label)
        with policies.policy() as forward:
            bar = "Scoring sampled answers"
            score = partial(self.scorer.logps, forward, description=bar, origin=origin)
            policy = completed(rows, known[Source.POLICY], score, label)
        origin = policies.reference_origin(label)
        with policies.reference() as forward:
            bar = "Reference of sampled answers"
            score = partial(self.scorer.logps, forward, description=bar, origin=origin)
            reference = completed(rows, known[Source.REFERENCE], score, label)
        finite = np.isfinite(policy.logps) & np.isfinite(reference.logps)
        bad = check_numbers(finite, self.config.max_set_aside, label, "sampled answers")
        found: dict[str, list[Candidate]] = {prompt.example_id: [] for prompt in prompts}
        for row in np.flatnonzero(finite):
            (prompt, answer, writer), p, r = flat[row], policy.logps[row], reference.logps[row]
            found[prompt.example_id].append(
                Candidate(
                    answer.token_ids,
                    writer,
                    answer.finished,
                    float(p - r),
                    float(p),
                    float(r),
                )
            )
        both = Scored(
            policy.logps,
            policy.tokens + reference.tokens,
            policy.padded_tokens + reference.padded_tokens,
        )
        return found, phase_of(start, both), bad

    def _mix_previous(
        self,
        prompts: list[Prompt],
        candidates: dict[str, list[Candidate]],
        snapshot: Snapshot,
        label: str,
    ) -> tuple[dict[str, list[Candidate]], Phase]:
        """(1−γ)·log-ratio now + γ·log-ratio under the previous review's policy, if finite."""
        start = time.perf_counter()
        rows = [(p, c) for p in prompts for c in candidates[p.example_id]]
        answers = CompletionList([(prompt.token_ids, c.token_ids) for prompt, c in rows])
        origin = self.policies.earlier_origin(snapshot, label)
        with self.policies.earlier(snapshot) as forward:
            done = self.scorer.logps(forward, answers, "Previous policy on sampled answers", origin)
        mixed: dict[str, list[Candidate]] = {prompt.example_id: [] for prompt in prompts}
        now = np.array([candidate.log_ratio for _, candidate in rows])
        before = done.logps - np.array([candidate.reference_logp for _, candidate in rows])
        ratios = ensemble(now, before, self.config.ensemble)
        for (prompt, candidate), ratio in zip(rows, ratios, strict=True):
            mixed[prompt.example_id].append(replace(candidate, log_ratio=float(ratio)))
        return mixed, phase_of(start, done)

    def _offline_candidates(
        self,
        prompts: list[Prompt],
        table: ReviewTable,
        reference: PairLogps,
        past: Past,
    ) -> dict[str, tuple[Candidate, ...]]:
        if self.config.bootstrap.pool == "policy":
            return {prompt.example_id: () for prompt in prompts}
        ids = [prompt.example_id for prompt in prompts]
        policy, ratios = table.policy.aligned(ids), table.ratios.aligned(ids)
        reference = reference.aligned(ids)
        chosen, rejected = ratios.chosen, ratios.rejected
        if past.table is not None and past.policy is not None:
            before = past.table.ratios.aligned(ids)
            chosen = ensemble(chosen, before.chosen, self.config.ensemble)
            rejected = ensemble(rejected, before.rejected, self.config.ensemble)
        sides = (
            (Source.CHOSEN, "chosen_ids", chosen, policy.chosen, reference.chosen),
            (Source.REJECTED, "rejected_ids", rejected, policy.rejected, reference.rejected),
        )
        rows = [self.pairs.dataset[self.pairs.position[example_id]] for example_id in ids]
        return {
            example_id: tuple(
                Candidate(tuple(row[name]), source, True, float(r[i]), float(p[i]), float(q[i]))
                for source, name, r, p, q in sides
                if np.isfinite(r[i])
            )
            for i, (example_id, row) in enumerate(zip(ids, rows, strict=True))
        }
