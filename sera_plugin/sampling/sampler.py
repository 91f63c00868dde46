"""Candidates sampled from a model. Collectives: those of ``dealing``.

An engine samples; which numbers it draws follows from (seed, round, example, candidate) alone. So
an answer does not depend on the batch it was sampled in, nor on the number of ranks, except through
rounding in the logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedModel

from sera_plugin.data.ids import uniforms
from sera_plugin.data.rollouts import Answered, Draws, Prompt, Rollout, RolloutCodec
from sera_plugin.review.pairing import Source
from sera_plugin.runtime.fitting import Fitting
from sera_plugin.runtime.passes import deal
from sera_plugin.runtime.shards import Origin, Shards
from sera_plugin.sampling.endings import finish
from sera_plugin.sampling.transformers_engine import TransformersEngine
from sera_plugin.scoring.scorer import plan_batches

SHORTEST = 0.7
"""A prompt with room for its answer has at least this share of the longest one's tokens in its
batch: every decoding step pays for the padding of all prompts."""

SHARD_BATCHES = 2
"""Batches per rank in a shard; a batch is many answers of many decoding steps, so few."""


_BAR = {Source.POLICY: "sampling", Source.REFERENCE: "sampling from the reference"}


@dataclass(frozen=True)
class Sampling:
    """Settings of a generation pass.

    Attributes:
        num_candidates: answers per prompt.
        temperature: 0 is greedy decoding.
        top_p: nucleus mass.
        max_new_tokens: most sampled tokens per answer, the stop token included.
        sequence_len: most tokens of prompt and answer together.
        ending: token ids that finish an answer.
        stops: token ids that end sampling.
        pad_token_id: fills prompts on the left and finished answers on the right.
        token_budget: most padded tokens of a batch.
        writer: whose answers they are, the policy's or the reference's.
        first_candidate: number of the first answer; an answer is drawn by its number.
    """

    num_candidates: int
    temperature: float
    top_p: float
    max_new_tokens: int
    sequence_len: int
    ending: tuple[int, ...]
    stops: frozenset[int]
    pad_token_id: int
    token_budget: int
    writer: Source = Source.POLICY
    first_candidate: int = 0

    def shared_out(self, sampler: str) -> tuple[Sampling, ...]:
        """The passes that sample all candidates of a prompt.

        Args:
            sampler: ``sera.bootstrap.sampler``. For ``mixed`` the policy writes the first half of
                the answers, the larger one of an odd number, and the reference the others.
        """
        if sampler == "policy":
            return (self,)
        if sampler == "reference":
            return (replace(self, writer=Source.REFERENCE),)
        own = (self.num_candidates + 1) // 2
        return (
            replace(self, num_candidates=own),
            replace(
                self,
                num_candidates=self.num_candidates - own,
                writer=Source.REFERENCE,
                first_candidate=own,
            ),
        )

    def room(self, prompt_tokens: int) -> int:
        """Most tokens to sample behind a prompt; the ending takes the stop token's place."""
        return min(self.max_new_tokens, self.sequence_len - prompt_tokens - len(self.ending) + 1)


class Engine(Protocol):
    """Samples answers on this rank.

    Attributes:
        name: ``sera.bootstrap.engine``; stored answers of one engine don't serve another.
        pads: whether prompts of a batch are padded to the longest one.
    """

    @property
    def name(self) -> str: ...

    @property
    def pads(self) -> bool: ...

    def sample(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        settings: Sampling,
        draws: Draws,
        *,
        synced: bool,
    ) -> list[list[np.ndarray]]:
        """Token ids of ``num_candidates`` answers to each prompt, int32, the stop token included.

        What follows a stop token has no meaning. No answer is longer than its ``Sampling.room``.

        Args:
            model: the one that writes, in evaluation mode.
            prompts: each has room for at least one token.
            settings: how answers are sampled.
            draws: the numbers that sampling follows, unless the temperature is 0.
            synced: whether all ranks must take every decoding step together.
        """


@dataclass(frozen=True)
class Sampler:
    """Samples candidates in batches dealt to all ranks.

    Attributes:
        accelerator: the trainer's accelerator.
        settings: how answers are sampled.
        after_shard: called on every rank when a shard is finished; it may raise to end the pass.
        engine: what samples.
        fitting: cuts batches that don't fit the memory.
    """

    accelerator: Accelerator
    settings: Sampling
    after_shard: Callable[[], None] | None = None
    engine: Engine = field(default_factory=TransformersEngine)
    fitting: Fitting = field(default_factory=Fitting)

    def rollouts(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        seed: int,
        round_number: int,
        *,
        synced: bool,
        origin: Origin | None = None,
    ) -> Mapping[str, tuple[Rollout, ...]]:
        """Sample ``num_candidates`` answers to every prompt; every rank gets all of them, by id.

        Every rank must call this with the same prompts, each with room for at least one token.

        Args:
            model: the one that writes, ready for ``generate``, in evaluation mode.
            prompts: what is answered.
            seed: the run's seed.
            round_number: the round that is being built.
            synced: whether all ranks must take every decoding step together (weights sharded
                over the ranks).
            origin: if given, finished shards are stored there and reused.

        Raises:
            OSError: if a shard can't be written.
        """
        copies = self.settings.num_candidates
        widths = np.array([len(prompt.token_ids) for prompt in prompts], dtype=np.int64)
        lengths = copies * (widths + self.settings.max_new_tokens)
        budget = self.settings.token_budget
        shortest = SHORTEST if self.engine.pads else 0.0
        batches = plan_batches(lengths, budget, shortest) if len(prompts) else []
        found = deal(
            self.accelerator,
            len(batches),
            lambda number: self._batch(
                model, [prompts[i] for i in batches[number]], seed, round_number, synced
            ),
            group=SHARD_BATCHES,
            description=f"Round {round_number}: {_BAR[self.settings.writer]}",
            codec=RolloutCodec(),
            shards=self._shards(origin, prompts, seed, round_number),
            stored=origin is not None,
            after_shard=self.after_shard,
            tokens=lambda _, found: sum(len(ids) for _, each in found for ids, _ in each),
        )
        # One object for each number: a token takes 8 bytes in place of 36.
        shared: dict[int, int] = {}
        return {
            example_id: tuple(
                Rollout(tuple(map(shared.setdefault, ids, ids)), finished)
                for ids, finished in ((tokens.tolist(), finished) for tokens, finished in answers)
            )
            for number in sorted(found)
            for example_id, answers in found[number]
        }

    def _shards(
        self, origin: Origin | None, prompts: Sequence[Prompt], seed: int, round_number: int
    ) -> Shards | None:
        if origin is None or not self.accelerator.is_main_process:
            return None
        digest = hashlib.blake2b(digest_size=16)
        for prompt in prompts:
            digest.update(f"{prompt.example_id}\0{len(prompt.token_ids)}\0".encode())
            digest.update(np.asarray(prompt.token_ids, dtype=np.int64).tobytes())
        determined_by = {
            "pass": "rollouts",
            "prompts": digest.hexdigest(),
            "seed": seed,
            "round": round_number,
            "settings": asdict(self.settings),
            "engine": self.engine.name,
            "mixed_precision": self.accelerator.mixed_precision,
        }
        return Shards.of(origin, determined_by)

    def _batch(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        seed: int,
        round_number: int,
        synced: bool,
    ) -> Answered:
        settings = self.settings

        def draws(prompt: Prompt, copy: int, count: int) -> np.ndarray:
            number = settings.first_candidate + copy
            return uniforms(count, seed, round_number, prompt.example_id, "candidate", number)

        def size(part: Sequence[Prompt]) -> int:
            longest = max(len(prompt.token_ids) for prompt in part)
            return len(part) * settings.num_candidates * (longest + settings.max_new_tokens)

        sampled = self.fitting.run(
            prompts,
            size,
            lambda part: self.engine.sample(model, part, settings, draws, synced=synced),
        )
        result: Answered = []
        for prompt, answers in zip(prompts, sampled, strict=True):
            ended = [finish(ids.tolist(), settings.ending, settings.stops) for ids in answers]
            kept = [(np.array(ids, dtype=np.int32), finished) for ids, finished in ended]
            result.append((prompt.example_id, kept))
        return result
