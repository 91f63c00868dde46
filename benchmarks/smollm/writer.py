"""Answers sampled from SmolLM2 or a policy on it, with their log-probs under the starting model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from peft import PeftModel

from benchmarks.smollm.sentiment import Asked
from sera_plugin.data.candidates import Prompt
from sera_plugin.sampling.sampler import Sampler
from sera_plugin.sampling.settings import Sampling
from sera_plugin.sampling.transformers_engine import TransformersEngine
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.frames import SEPARATOR
from sera_plugin.scoring.scorer import Scorer, inference

MOST_TOKENS, TEMPERATURE = 64, 0.7
END, PAD = 2, 0


TOKENS = {"cpu": 2048, "cuda": 32768}
"""Most padded tokens of a batch that is scored."""


def scorer_on(device: str, shares: bool = False) -> Scorer:
    """What scores answers to the task's prompts on a device, ``cpu`` or ``cuda``."""
    return Scorer(Accelerator(cpu=device == "cpu"), PAD, None, TOKENS[device], shares=shares)


class Writer:
    """Samples answers from a model and finds their log-probs under the starting model.

    Args:
        model: the starting model, or a policy on top of it with an adapter that can be left out.
        tokenizer: its tokenizer.
        seed: of the samples.
        ahead: an instruction that is put ahead of each prompt that is sampled from. Log-probs under
            the starting model are those behind the prompt alone.
    """

    def __init__(self, model: Any, tokenizer: Any, seed: int, ahead: str = "") -> None:
        self.model, self.tokenizer, self.seed, self.ahead = model, tokenizer, seed, ahead
        self.scorer = scorer_on(model.device.type)
        self.accelerator = self.scorer.accelerator

    def write(self, asked: Sequence[Asked], count: int, draw: int) -> list[dict[str, Any]]:
        """``count`` answers to every prompt, a dict each, by the numbers of drawing ``draw``."""
        settings = Sampling(
            num_candidates=count,
            temperature=TEMPERATURE,
            top_p=1.0,
            max_new_tokens=MOST_TOKENS,
            sequence_len=512,
            ending=(END,),
            stops=frozenset({END, PAD}),
            pad_token_id=PAD,
            token_budget=32768,
        )
        ids = {one.key: prompt_ids(one.text, self.tokenizer) for one in asked}
        told = {one.key: prompt_ids(self._told(one.text), self.tokenizer) for one in asked}
        given = [Prompt(key, tokens) for key, tokens in told.items()]
        sampler = Sampler(self.accelerator, settings, TransformersEngine())
        with inference(self.model):
            found = sampler.completions(self.model, given, self.seed, draw, synced=False)
            rows = [(ids[key], one.token_ids) for key in ids for one in found[key]]
            logps = self._under_start(rows)
            own = [(told[key], one.token_ids) for key in ids for one in found[key]]
            ratios = self._ratios(own, logps)
        lines = []
        for number, one in enumerate(asked):
            answers = found[one.key]
            sums = logps[count * number : count * (number + 1)]
            lines.append(
                {
                    "key": one.key,
                    "prompt": one.text,
                    "held_out": one.held_out,
                    "answers": [self._text(answer.token_ids) for answer in answers],
                    "finished": [answer.finished for answer in answers],
                    "tokens": [len(answer.token_ids) for answer in answers],
                    "fluency": [
                        round(float(value) / max(1, len(answer.token_ids)), 3)
                        for value, answer in zip(sums, answers, strict=True)
                    ],
                    **{k: v[count * number : count * (number + 1)] for k, v in ratios.items()},
                }
            )
        return lines

    def _under_start(self, rows: list[tuple[Any, Any]]) -> np.ndarray:
        if not isinstance(self.model, PeftModel):
            return self.scorer.logps(self.model, CompletionList(rows), "Fluency").logps
        with self.model.disable_adapter():
            return self.scorer.logps(self.model, CompletionList(rows), "Fluency").logps

    def _ratios(self, rows: list[tuple[Any, Any]], logps: np.ndarray) -> dict[str, list[float]]:
        """Log-ratios of a policy's answers, whose mean estimates the KL; none of the start's."""
        if not isinstance(self.model, PeftModel) and not self.ahead:
            return {}
        own = self.scorer.logps(self.model, CompletionList(rows), "Policy").logps
        return {"ratio": [round(float(value), 3) for value in own - logps]}

    def _told(self, text: str) -> str:
        return f"{self.ahead}{SEPARATOR}{text}" if self.ahead else text

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def prompt_ids(text: str, tokenizer: Any) -> tuple[int, ...]:
    """Token ids of a prompt under the template, with the assistant's opening."""
    asked = [{"role": "user", "content": text}]
    found = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
    return tuple(found["input_ids"])
