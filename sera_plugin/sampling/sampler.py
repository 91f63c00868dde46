"""Candidates sampled from a model. Collectives: those of ``runtime.passes``.

An engine samples; which numbers it draws follows from (seed, round, example, candidate) alone. So
an answer does not depend on the batch it was sampled in, nor on the number of ranks, except through
rounding in the logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
from accelerate import Accelerator
from transformers import PreTrainedModel

from sera_plugin.data.candidates import Answered, Completion, Prompt
from sera_plugin.data.ids import uniforms
from sera_plugin.data.pairs import list_rows
from sera_plugin.runtime.memory import Fitting
from sera_plugin.runtime.passes import Pass
from sera_plugin.runtime.shards import Origin, Shards
from sera_plugin.sampling.engines import Engine, Measured, check_answers, measuring
from sera_plugin.sampling.settings import Sampling, finish
from sera_plugin.scoring.batches import plan_batches

SHORTEST = 0.7
"""A prompt with room for its answer has at least this share of the longest one's tokens in its
batch: every decoding step pays for the padding of all prompts."""

SHARD_BATCHES = 2
"""Batches per rank in a shard; a batch is many answers of many decoding steps, so few."""


@dataclass(frozen=True)
class Sampler:
    """Samples candidates in batches dealt to all ranks.

    Attributes:
        accelerator: the trainer's accelerator.
        settings: how answers are sampled.
        engine: what samples.
        after_shard: called on every rank when a shard is finished; it may raise to end the pass.
        fitting: cuts batches that don't fit the memory.
    """

    accelerator: Accelerator
    settings: Sampling
    engine: Engine
    after_shard: Callable[[], None] | None = None
    fitting: Fitting = field(default_factory=Fitting)

    def completions(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        seed: int,
        round_number: int,
        *,
        synced: bool,
        origin: Origin | None = None,
    ) -> Mapping[str, tuple[Completion, ...]]:
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
            StoreError: if a shard can't be written.
        """
        copies = self.settings.num_candidates
        widths = np.array([len(prompt.token_ids) for prompt in prompts], dtype=np.int64)
        lengths = copies * (widths + self.settings.max_new_tokens)
        budget = self.settings.token_budget
        shortest = SHORTEST if self.engine.pads else 0.0
        batches = plan_batches(lengths, budget, shortest) if len(prompts) else []
        found = Pass(
            self.accelerator,
            f"Round {round_number}: {self.settings.writer.bar}",
            lambda number: self._batch(
                model, [prompts[i] for i in batches[number]], seed, round_number, synced
            ),
            CompletionCodec(),
            SHARD_BATCHES,
            None if origin is None else partial(self._shards, origin, prompts, seed, round_number),
            self.after_shard,
            tokens=lambda _, found: sum(len(ids) for _, each in found for ids, *_ in each),
        ).results(len(batches))
        # One object for each number: a token takes 8 bytes in place of 36.
        shared: dict[int, int] = {}
        return {
            example_id: tuple(
                Completion(tuple(map(shared.setdefault, ids, ids)), finished, logp)
                for ids, finished, logp in (
                    (tokens.tolist(), finished, logp) for tokens, finished, logp in answers
                )
            )
            for number in sorted(found)
            for example_id, answers in found[number]
        }

    def _shards(
        self, origin: Origin, prompts: Sequence[Prompt], seed: int, round_number: int
    ) -> Shards:
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

        def sampled(part: Sequence[Prompt]) -> list[list[Measured]]:
            engine = measuring(self.engine) if settings.measured else None
            if engine is not None:
                return engine.measured(model, part, settings, draws, synced=synced)
            found = self.engine.sample(model, part, settings, draws, synced=synced)
            return [[(ids, None) for ids in answers] for answers in found]

        made = self.fitting.run(prompts, size, sampled)
        tokens = [[ids for ids, _ in answers] for answers in made]
        check_answers(self.engine, tokens, prompts, settings)
        result: Answered = []
        for prompt, answers in zip(prompts, made, strict=True):
            kept = []
            for ids, logp in answers:
                ended, finished = finish(ids.tolist(), settings.ending, settings.stops)
                kept.append((np.array(ended, dtype=np.int32), finished, logp))
            result.append((prompt.example_id, kept))
        return result


_ROLLOUTS = pa.schema(
    [
        ("batch", pa.int64()),
        ("example_id", pa.string()),
        ("finished", pa.bool_()),
        ("logp", pa.float64()),
        ("token_ids", pa.list_(pa.int32())),
    ]
)


class CompletionCodec:
    """Completions of batches as a table with a row per answer, candidates in their order."""

    def encode(self, found: Mapping[int, Answered]) -> pa.Table:
        rows = [
            (number, example_id, finished, logp, token_ids)
            for number, answered in found.items()
            for example_id, answers in answered
            for token_ids, finished, logp in answers
        ]
        columns = zip(*rows, strict=True)
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, _ROLLOUTS, strict=True)
        ]
        return pa.table(arrays, schema=_ROLLOUTS)

    def decode(self, table: pa.Table) -> dict[int, Answered]:
        found: dict[int, dict[str, list[tuple[np.ndarray, bool, float | None]]]] = {}
        *columns, tokens = (table[name] for name in _ROLLOUTS.names)
        names = (column.to_pylist() for column in columns)
        rows = zip(*names, list_rows(tokens), strict=True)
        for number, example_id, finished, logp, token_ids in rows:
            answers = found.setdefault(number, {}).setdefault(example_id, [])
            answers.append((token_ids, finished, logp))
        return {number: list(answered.items()) for number, answered in found.items()}


def sampler_of(
    engine: Engine,
    settings: Sampling,
    accelerator: Accelerator,
    after_shard: Callable[[], None],
    may_cut: bool,
) -> Sampler:
    """What samples for a run.

    Args:
        engine: the one that the config names.
        settings: how answers are sampled.
        accelerator: the trainer's accelerator.
        after_shard: called on every rank when a shard is finished.
        may_cut: whether a rank may sample a batch in halves by itself.
    """
    if engine.token_budget is not None:
        settings = replace(settings, token_budget=engine.token_budget)
    return Sampler(accelerator, settings, engine, after_shard, Fitting(may_cut and engine.cuts))
