"""Candidates sampled from a model. Collectives: those of ``dealing``.

Token t of candidate k of an example is drawn by the inverse of the cumulative distribution at a
number that only (seed, round, example, k, t) determine. So an answer does not depend on the batch
it was sampled in, nor on the number of ranks, except through rounding in the logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from sera_plugin.dealing import deal
from sera_plugin.endings import finish
from sera_plugin.identity import uniforms
from sera_plugin.pairing import Source
from sera_plugin.rollouts import Answered, Prompt, Rollout, RolloutCodec
from sera_plugin.scoring import plan_batches
from sera_plugin.shards import Origin, Shards

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


class InverseCdfSampler(LogitsProcessor):
    """Leaves only the token at which the cumulative distribution passes the row's next uniform.

    Args:
        draws: uniforms in [0, 1), shape (rows, tokens), on the logits' device.
        prompt_tokens: padded length of the prompts.
    """

    def __init__(self, draws: torch.Tensor, prompt_tokens: int) -> None:
        self.draws = draws
        self.prompt_tokens = prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_tokens
        cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
        total = cumulative[:, -1:]
        # Below the total even after rounding, so that no token without probability is drawn.
        below = torch.nextafter(total, torch.zeros_like(total))
        target = torch.minimum(self.draws[:, step : step + 1] * total, below)
        token = torch.searchsorted(cumulative, target, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


@contextmanager
def _without_own_settings(model: torch.nn.Module) -> Iterator[None]:
    """The model without its generation settings: `generate` would mix a repetition penalty and
    the like into ours, and the answers would no longer be the policy's."""
    own: dict[Any, Any] = {
        module: module.generation_config
        for module in model.modules()
        if "generation_config" in vars(module)
    }
    try:
        for module in own:
            module.generation_config = GenerationConfig()
        yield
    finally:
        for module, settings in own.items():
            module.generation_config = settings


@dataclass(frozen=True)
class Sampler:
    """Samples candidates with ``generate``; the arguments are those of ``Scorer``."""

    accelerator: Accelerator
    settings: Sampling
    after_shard: Callable[[], None] | None = None

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
        batches = plan_batches(lengths, self.settings.token_budget) if len(prompts) else []
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
            tokens=lambda _, found: sum(len(a.token_ids) for _, each in found for a in each),
        )
        return {
            example_id: answers for number in sorted(found) for example_id, answers in found[number]
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
        settings, device = self.settings, self.accelerator.device
        copies = settings.num_candidates
        width = max(len(prompt.token_ids) for prompt in prompts)
        input_ids = torch.full((len(prompts), width), settings.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
            attention_mask[row, width - len(prompt.token_ids) :] = 1
        steps = max(settings.room(len(prompt.token_ids)) for prompt in prompts)
        generate: Any = model.generate
        with _without_own_settings(model):
            sampled = generate(
                input_ids=input_ids.repeat_interleave(copies, 0).to(device),
                attention_mask=attention_mask.repeat_interleave(copies, 0).to(device),
                generation_config=self._config(steps),
                logits_processor=self._processors(prompts, seed, round_number, steps, width),
                synced_gpus=synced,
            )[:, width:].cpu()
        result: Answered = []
        for row, prompt in enumerate(prompts):
            room = settings.room(len(prompt.token_ids))
            rows = sampled[row * copies : (row + 1) * copies, :room].tolist()
            answers = tuple(Rollout(*finish(r, settings.ending, settings.stops)) for r in rows)
            result.append((prompt.example_id, answers))
        return result

    def _config(self, steps: int) -> GenerationConfig:
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            use_cache=True,
            max_new_tokens=steps,
            eos_token_id=sorted(self.settings.stops),
            pad_token_id=self.settings.pad_token_id,
        )

    def _processors(
        self, prompts: Sequence[Prompt], seed: int, round_number: int, steps: int, width: int
    ) -> LogitsProcessorList:
        settings = self.settings
        if settings.temperature == 0:
            return LogitsProcessorList()
        draws = [
            uniforms(steps, seed, round_number, prompt.example_id, "candidate", copy)
            for prompt in prompts
            for copy in range(
                settings.first_candidate, settings.first_candidate + settings.num_candidates
            )
        ]
        processors = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(settings.top_p))
        table = torch.from_numpy(np.stack(draws)).to(self.accelerator.device)
        processors.append(InverseCdfSampler(table, width))
        return processors
