"""Bootstrapping with models: sample prompts, score the answers, pair best against worst."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sera_plugin.config import SeraConfig
from sera_plugin.generation import Prompt, Rollout, Sampler
from sera_plugin.identity import permutation
from sera_plugin.offline import OfflinePairs
from sera_plugin.pairing import (
    Candidate,
    FreshPair,
    Pool,
    Shortfall,
    Source,
    balanced_penalty,
    bootstrap,
    distinct,
    keep_top,
)
from sera_plugin.policies import Policies, Snapshot
from sera_plugin.schedule import RoundSize, share_of
from sera_plugin.scores import PairLogps, ensemble
from sera_plugin.scoring import Answers, Phase, Scorer, phase_of
from sera_plugin.shards import round_label
from sera_plugin.tables import ReviewTable


@dataclass(frozen=True)
class SampleStats:
    """All sampled answers, repeats and empty ones included.

    Attributes:
        answers: how many were sampled.
        unique: share that is left when each prompt's repeats are dropped.
        finished: share that ended by a stop token.
        kl: mean log πθ/πref over the answers with at least one token, nats.
    """

    answers: int
    unique: float
    finished: float
    kl: float

    @classmethod
    def of(
        cls,
        rollouts: Mapping[str, tuple[Rollout, ...]],
        fresh: Mapping[str, Sequence[Candidate]],
    ) -> SampleStats | None:
        """Statistics, or None if nothing was sampled; ``fresh`` holds the scored answers."""
        answers = [(i, rollout) for i, sampled in rollouts.items() for rollout in sampled]
        if not answers:
            return None
        ratio = {
            (i, c.token_ids, c.finished): c.policy_logp - c.reference_logp
            for i, candidates in fresh.items()
            for c in candidates
        }
        keys = [(i, r.token_ids, r.finished) for i, r in answers]
        ratios = [ratio[key] for key in keys if key in ratio]
        return cls(
            answers=len(answers),
            unique=len(set(keys)) / len(keys),
            finished=float(np.mean([r.finished for _, r in answers])),
            kl=float(np.mean(ratios)) if ratios else 0.0,
        )


@dataclass(frozen=True)
class Bootstrapped:
    """What bootstrapping did: all pools, the pairs kept, α, and why pools gave no pair."""

    pools: tuple[Pool, ...]
    pairs: tuple[FreshPair, ...]
    penalty: float
    short: Mapping[Shortfall, int]
    without_room: int
    samples: SampleStats | None


@dataclass(frozen=True)
class Bootstrapper:
    """Makes new pairs from the policy's own answers. Every rank runs it and finds the same.

    Attributes:
        config: the ``sera:`` block.
        pairs: D.
        scorer: scores completions.
        sampler: samples candidates.
        policies: the models.
        seed: the run's seed.
        beta: β of the loss.
    """

    config: SeraConfig
    pairs: OfflinePairs
    scorer: Scorer
    sampler: Sampler
    policies: Policies
    seed: int
    beta: float

    def run(
        self,
        size: RoundSize,
        table: ReviewTable,
        reference: PairLogps,
        previous: ReviewTable | None,
        previous_policy: Snapshot | None,
    ) -> tuple[Bootstrapped, Phase, Phase]:
        """Bootstrap for round ``size.number``; also the generation and the scoring phase.

        Args:
            size: the planned sizes of the round.
            table: this round's review of the offline pairs.
            reference: log-probs of D under πref.
            previous: the previous review, or None at the first.
            previous_policy: the previous review's policy, if fresh answers are ensembled too.
        """
        if size.bootstrapped == 0:
            return Bootstrapped((), (), 0.0, {}, 0, None), Phase(), Phase()
        prompts, without_room = self._prompts(size.number)
        start = time.perf_counter()
        label = round_label(size.number)
        origin = self.policies.policy_origin(label)
        with self.policies.generating() as (model, synced):
            rollouts = self.sampler.rollouts(
                model, prompts, self.seed, size.number, synced=synced, origin=origin
            )
        sampled = sum(len(r.token_ids) for answers in rollouts.values() for r in answers)
        generation = Phase(time.perf_counter() - start, sampled, sampled)
        fresh, scoring = self._score_rollouts(prompts, rollouts, label)
        samples = SampleStats.of(rollouts, fresh)
        if previous_policy is not None:
            fresh, more = self._mix_previous(prompts, fresh, previous_policy, label)
            scoring += more
        offline = self._offline_candidates(prompts, table, reference, previous, previous_policy)
        pools = tuple(
            Pool(p.example_id, distinct((*fresh[p.example_id], *offline[p.example_id])))
            for p in prompts
        )
        settings = self.config.bootstrap
        penalty = settings.length_penalty
        if penalty == "auto":
            penalty = balanced_penalty(pools, self.beta)
        pairs, short = bootstrap(pools, self.beta, penalty)
        kept = tuple(keep_top(pairs, size.bootstrapped))
        done = Bootstrapped(pools, kept, penalty, short, without_room, samples)
        return done, generation, scoring

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

    def _score_rollouts(
        self, prompts: list[Prompt], rollouts: Mapping[str, tuple[Rollout, ...]], label: str
    ) -> tuple[dict[str, list[Candidate]], Phase]:
        start = time.perf_counter()
        flat = [
            (prompt, answer)
            for prompt in prompts
            for answer in dict.fromkeys(rollouts[prompt.example_id])
            if len(answer.token_ids) > (len(self.sampler.settings.ending) if answer.finished else 0)
        ]
        answers = Answers([(prompt.token_ids, answer.token_ids) for prompt, answer in flat])
        origin = self.policies.policy_origin(label)
        with self.policies.policy() as forward:
            policy = self.scorer.logps(forward, answers, "Scoring sampled answers", origin)
        origin = self.policies.reference_origin(label)
        with self.policies.reference() as forward:
            reference = self.scorer.logps(forward, answers, "Reference of sampled answers", origin)
        found: dict[str, list[Candidate]] = {prompt.example_id: [] for prompt in prompts}
        for (prompt, answer), p, r in zip(flat, policy.logps, reference.logps, strict=True):
            if not np.isfinite(p - r):
                continue
            found[prompt.example_id].append(
                Candidate(
                    answer.token_ids,
                    Source.POLICY,
                    answer.finished,
                    float(p - r),
                    float(p),
                    float(r),
                )
            )
        phase = phase_of(start, policy)
        return found, replace(phase, tokens=2 * phase.tokens, padded_tokens=2 * phase.padded_tokens)

    def _mix_previous(
        self,
        prompts: list[Prompt],
        fresh: dict[str, list[Candidate]],
        snapshot: Snapshot,
        label: str,
    ) -> tuple[dict[str, list[Candidate]], Phase]:
        """(1−γ)·log-ratio now + γ·log-ratio under the previous review's policy."""
        start = time.perf_counter()
        rows = [(p, c) for p in prompts for c in fresh[p.example_id]]
        answers = Answers([(prompt.token_ids, c.token_ids) for prompt, c in rows])
        origin = self.policies.earlier_origin(snapshot, label)
        with self.policies.earlier(snapshot) as forward:
            done = self.scorer.logps(forward, answers, "Previous policy on sampled answers", origin)
        mixed: dict[str, list[Candidate]] = {prompt.example_id: [] for prompt in prompts}
        weight = self.config.ensemble
        for (prompt, candidate), logp in zip(rows, done.logps, strict=True):
            before = float(logp) - candidate.reference_logp
            ratio = (1 - weight) * candidate.log_ratio + weight * before
            mixed[prompt.example_id].append(replace(candidate, log_ratio=ratio))
        return mixed, phase_of(start, done)

    def _offline_candidates(
        self,
        prompts: list[Prompt],
        table: ReviewTable,
        reference: PairLogps,
        previous: ReviewTable | None,
        previous_policy: Snapshot | None,
    ) -> dict[str, tuple[Candidate, ...]]:
        if self.config.bootstrap.pool == "policy":
            return {prompt.example_id: () for prompt in prompts}
        ids = [prompt.example_id for prompt in prompts]
        policy, ratios = table.policy.aligned(ids), table.ratios.aligned(ids)
        reference = reference.aligned(ids)
        chosen, rejected = ratios.chosen, ratios.rejected
        if previous is not None and previous_policy is not None:
            before = previous.ratios.aligned(ids)
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
            )
            for i, (example_id, row) in enumerate(zip(ids, rows, strict=True))
        }
