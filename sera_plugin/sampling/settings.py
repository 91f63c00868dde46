"""How a run samples answers: from its ``sera.bootstrap`` block, tokenizer and offline answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sera_plugin.runtime.fitting import Fitting
from sera_plugin.sampling.endings import common_ending
from sera_plugin.sampling.engines import engine_of
from sera_plugin.sampling.sampler import Sampler, Sampling
from sera_plugin.sampling.vllm_engine import REQUEST_TOKENS, VllmEngine
from sera_plugin.training.costs import GENERATION_BATCHES


def sampling_settings(trainer: Any, training_tokens: int) -> Sampling:
    """Sampling settings of a run.

    Args:
        trainer: the run's trainer, with its pairs, tokenizer and model.
        training_tokens: most tokens of a training batch.

    Raises:
        ValueError: if most offline answers end without a special token.
    """
    settings, tokenizer = trainer.sera.bootstrap, trainer._tokenizer
    special = frozenset(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    blank = frozenset(i for i in range(len(tokenizer)) if not tokenizer.decode([i]).strip())
    ending: tuple[int, ...] = (tokenizer.eos_token_id,)
    if settings.fraction > 0:
        rows = trainer.pairs.dataset.select_columns(["chosen_ids", "rejected_ids"])
        answers = (row[side] for row in rows for side in ("chosen_ids", "rejected_ids"))
        ending = common_ending(answers, special, blank)
    own = getattr(trainer.model, "generation_config", None)
    eos = getattr(own, "eos_token_id", None) or ()
    eos = (eos,) if isinstance(eos, int) else tuple(eos)
    return Sampling(
        num_candidates=settings.num_candidates,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        sequence_len=trainer.args.max_length or 2**31,
        ending=ending,
        stops=frozenset({ending[0], tokenizer.eos_token_id, *eos}),
        pad_token_id=tokenizer.pad_token_id,
        token_budget=GENERATION_BATCHES * training_tokens,
    )


def sampler_of(trainer: Any, fitting: Fitting) -> Sampler:
    """What samples for a run, with its ``sampling`` and the engine that its config names."""
    engine, settings = engine_of(trainer), trainer.sampling
    if isinstance(engine, VllmEngine):
        # It takes its own memory, and all ranks ask it together.
        fitting = Fitting(may_cut=False)
        settings = replace(settings, token_budget=REQUEST_TOKENS)
    return Sampler(trainer.accelerator, settings, trainer.stop.check, engine, fitting)
