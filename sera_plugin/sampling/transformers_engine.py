"""Completions by ``generate`` of transformers.

All answers to a prompt share one pass over it. Every few tokens the answers that are finished leave
the batch. The batch changes nothing but speed: token t of candidate k of an example is drawn by the
inverse of the cumulative distribution at a number that only (seed, round, example, k, t) determine.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from accelerate import PartialState
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from sera_plugin.host.cache import growing_cache
from sera_plugin.sampling.measuring import Notes, Stopped
from sera_plugin.scoring.logps import causal_lm, keeps_logits

if TYPE_CHECKING:
    from sera_plugin.data.candidates import Draws, Prompt
    from sera_plugin.sampling.engines import Measured
    from sera_plugin.sampling.settings import EngineParts, Sampling, Serving

SEGMENT = 32
"""Tokens between two moments at which finished answers leave."""


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
        return only_drawn(scores, self.draws[:, step : step + 1])


def only_drawn(scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """0 at the token where a row's cumulative distribution passes its number, −∞ elsewhere.

    Args:
        scores: logits, shape (rows, vocabulary).
        numbers: uniforms in [0, 1), float64, shape (rows, 1).
    """
    cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Below the total even after rounding, so that no token without probability is drawn.
    below = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(numbers * total, below)
    token = torch.searchsorted(cumulative, target, right=True).clamp(max=scores.shape[-1] - 1)
    return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def warpers(settings: Sampling) -> LogitsProcessorList:
    """What temperature and nucleus do to logits before a token is drawn."""
    processors = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    return processors


@contextmanager
def without_own_settings(model: torch.nn.Module) -> Iterator[None]:
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


@dataclass
class _Batch:
    """The answers that are not finished yet.

    Attributes:
        rows: which answers of the whole batch they are.
        tokens: prompts, padded on the left, and what is sampled so far, shape (rows, tokens).
        mask: 0 where ``tokens`` is padding.
        room: most tokens of each answer.
        draws: uniforms, shape (rows, most tokens), or None for greedy decoding.
        cache: keys and values of all tokens but the last, or None.
    """

    rows: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor
    room: torch.Tensor
    draws: torch.Tensor | None
    cache: DynamicCache | None

    def keep(self, some: torch.Tensor) -> None:
        """Let the others leave; ``some`` is a mask, shape (rows,)."""
        if bool(some.all()):
            return
        indices = some.nonzero()[:, 0]
        self.rows, self.tokens, self.mask, self.room = (
            tensor[indices] for tensor in (self.rows, self.tokens, self.mask, self.room)
        )
        if self.draws is not None:
            self.draws = self.draws[indices]
        if self.cache is not None:
            self.cache.batch_select_indices(indices)


@dataclass(frozen=True)
class TransformersEngine:
    """Samples with ``generate``."""

    name: ClassVar[str] = "transformers"
    pads: ClassVar[bool] = True
    cuts: ClassVar[bool] = True
    token_budget: ClassVar[int | None] = None

    @classmethod
    def start(cls, parts: EngineParts) -> Self:
        return cls()

    def serving(self, serving: Serving) -> AbstractContextManager[tuple[PreTrainedModel, bool]]:
        return serving.policies.generating(serving.writer)

    def sample(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        settings: Sampling,
        draws: Draws,
        *,
        synced: bool,
    ) -> list[list[np.ndarray]]:
        copies = settings.num_candidates
        answers, _ = self._sampled(model, prompts, settings, draws, synced)
        return [answers[i : i + copies] for i in range(0, len(answers), copies)]

    def measured(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        settings: Sampling,
        draws: Draws,
        *,
        synced: bool,
    ) -> list[list[Measured]]:
        """See ``engines.MeasuringEngine``."""
        copies = settings.num_candidates
        answers, notes = self._sampled(model, prompts, settings, draws, synced)
        found = list(zip(answers, notes.sums(answers), strict=True))
        return [found[i : i + copies] for i in range(0, len(found), copies)]

    def _sampled(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        settings: Sampling,
        draws: Draws,
        synced: bool,
    ) -> tuple[list[np.ndarray], Notes]:
        """Token ids of every answer up to its room, and what was noted if that is wanted."""
        device = PartialState().device
        stops = torch.tensor(sorted(settings.stops), device=device)
        with torch.no_grad(), without_own_settings(model):
            batch, width = self._start(model, prompts, settings, draws)
            shape = (len(batch.rows), int(batch.room.max()))
            sampled = torch.full(shape, settings.pad_token_id, device=device)
            room, steps, done = batch.room, sampled.shape[1], 0
            notes = Notes(settings.ending, stops, shape, device)
            while done < steps and len(batch.rows):
                # Ranks that decode together must call `generate` equally often.
                cut = batch.cache is not None and not synced
                tokens = min(SEGMENT, steps - done) if cut else steps
                self._continue(model, batch, settings, width, tokens, synced, notes)
                new = batch.tokens[:, width + done :]
                sampled[batch.rows, done : done + new.shape[1]] = new
                is_stop = torch.isin(new, stops)
                stopped = is_stop.any(dim=1)
                if settings.measured:
                    notes.take(batch.rows, done)
                    at = (width + done + is_stop.int().argmax(dim=1)).float()
                    ended = Stopped(batch.rows, batch.mask, at.masked_fill(~stopped, torch.nan))
                    notes.read_endings(model, batch.cache, ended, all_rows=synced)
                done += new.shape[1]
                if not cut:
                    break
                batch.keep(~stopped & (batch.room > done))
        found = sampled.int().cpu().numpy()
        return [row[:most] for row, most in zip(found, room.tolist(), strict=True)], notes

    def _start(
        self, model: PreTrainedModel, prompts: Sequence[Prompt], settings: Sampling, draws: Draws
    ) -> tuple[_Batch, int]:
        """The batch before the first token, and the prompts' padded length."""
        copies, device = settings.num_candidates, PartialState().device
        # At least 2, so that every rank's prompts have a part that is passed over in advance.
        width = max(2, *(len(prompt.token_ids) for prompt in prompts))
        tokens = torch.full((len(prompts), width), settings.pad_token_id)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
            mask[row, width - len(prompt.token_ids) :] = 1
        room = torch.tensor([settings.room(len(prompt.token_ids)) for prompt in prompts])
        tokens, mask, room = (t.to(device) for t in (tokens, mask, room))
        cache = self._read(model, tokens[:, :-1], mask[:, :-1])
        if cache is not None:
            cache.batch_repeat_interleave(copies)
        uniforms = None
        if settings.temperature != 0:
            table = [draws(p, k, int(room.max())) for p in prompts for k in range(copies)]
            uniforms = torch.from_numpy(np.stack(table)).to(device)
        tokens, mask, room = (t.repeat_interleave(copies, 0) for t in (tokens, mask, room))
        rows = torch.arange(len(tokens), device=device)
        return _Batch(rows, tokens, mask, room, uniforms, cache), width

    def _read(
        self, model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor
    ) -> DynamicCache | None:
        """Keys and values of all prompts but their last tokens."""
        inner = causal_lm(model)
        if "past_key_values" not in inspect.signature(type(inner).forward).parameters:
            return None  # a model with a state of another kind, such as Mamba's
        cache = growing_cache(inner.config)
        model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            **({"logits_to_keep": 1} if keeps_logits(model) else {}),
        )
        return cache

    def _continue(
        self,
        model: PreTrainedModel,
        batch: _Batch,
        settings: Sampling,
        width: int,
        tokens: int,
        synced: bool,
        notes: Notes,
    ) -> None:
        """Sample up to ``tokens`` more tokens of every answer in the batch."""
        before = batch.tokens.shape[1]
        generate: Any = model.generate
        options = {"past_key_values": batch.cache} if batch.cache is not None else {}
        done = generate(
            input_ids=batch.tokens,
            attention_mask=batch.mask,
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=1,
                use_cache=True,
                max_new_tokens=tokens,
                eos_token_id=sorted(settings.stops),
                pad_token_id=settings.pad_token_id,
                return_dict_in_generate=True,
            ),
            logits_processor=_processors(settings, batch.draws, width, notes),
            synced_gpus=synced,
            **options,
        )
        batch.tokens = done.sequences
        more = torch.ones_like(batch.tokens[:, before:])
        batch.mask = torch.cat([batch.mask, more], dim=1)


def _processors(
    settings: Sampling, draws: torch.Tensor | None, width: int, notes: Notes
) -> LogitsProcessorList:
    found: list[Any] = []
    if draws is not None:
        found = [*warpers(settings), InverseCdfSampler(draws, width)]
    return LogitsProcessorList(notes.around(found) if settings.measured else found)
