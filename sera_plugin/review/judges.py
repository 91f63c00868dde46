"""Judges of answers: the implicit reward alone, a function of the user's own, a reward model.

The contrast of quality prompts is in ``review.contrast_judge``.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from sera_plugin.config import BootstrapConfig
from sera_plugin.config.fields import is_function
from sera_plugin.config.parts import JUDGES
from sera_plugin.host.models import fingerprint, whole_models
from sera_plugin.review.judging import KEY, Court, Judge, PoolJudge, Question
from sera_plugin.runtime.errors import JudgeError, first_line
from sera_plugin.scoring.contrast import Contrast


@dataclass(frozen=True)
class JudgeParts:
    """What a judge is made from.

    Attributes:
        config: the ``sera.bootstrap`` block.
        tokenizer: the policy's tokenizer, which turns token ids into text.
        accelerator: the trainer's accelerator.
        contrast: measures the contrast of quality prompts, where the block asks for it.
    """

    config: BootstrapConfig
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    contrast: Contrast | None = None


def judge_of(parts: JudgeParts) -> Judge | PoolJudge | None:
    """The judge that ``sera.bootstrap.judge`` names; None where the implicit reward ranks alone.

    Raises:
        SeraConfigError: if a function can't be imported.
        JudgeError: if a reward model can't be used.
    """
    named = parts.config.judge
    if named in JUDGES.names:
        found: Judge | PoolJudge | None = JUDGES.load(named)(parts)
        return found
    if is_function(named):
        return FunctionJudge(named, parts.tokenizer)
    return RewardModelJudge(named, parts.tokenizer, parts.accelerator)


def court_of(parts: JudgeParts, folder: Path, after_shard: Callable[[], None]) -> Court | None:
    """What deals a run's answers to its judge; None without one. Every rank must call this alike.

    Args:
        parts: what the judge is made from.
        folder: where shards are kept.
        after_shard: called on every rank when a shard is finished.

    Raises:
        SeraConfigError: if a function can't be imported.
        JudgeError: if a reward model can't be used.
    """
    config = parts.config
    judge = judge_of(parts) if config.fraction > 0 else None
    if judge is None:
        return None
    return Court(parts.accelerator, judge, folder, config.judge_mode == "replace", after_shard)


def implicit(parts: JudgeParts) -> None:
    """No judge: the implicit reward ranks the answers."""


class FunctionJudge:
    """The user's ``package.module:function(prompts, completions, **kwargs) -> list``.

    ``prompts`` are texts as the policy sees them, ``completions`` are texts without special tokens.
    ``prompt_ids``, ``completion_ids`` and ``example_ids`` come as keywords.

    Raises:
        SeraConfigError: if the function can't be imported.
    """

    def __init__(self, path: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._function = JUDGES.load(path)
        self._tokenizer = tokenizer
        self.identity = f"{path}:{_source_hash(self._function)}"

    def __call__(self, questions: Sequence[Question]) -> Sequence[float | None]:
        prompts = [self._tokenizer.decode(list(q.prompt_ids)) for q in questions]
        completions = [
            self._tokenizer.decode(list(q.completion_ids), skip_special_tokens=True)
            for q in questions
        ]
        scores: Sequence[float | None] = self._function(
            prompts=prompts,
            completions=completions,
            prompt_ids=[list(q.prompt_ids) for q in questions],
            completion_ids=[list(q.completion_ids) for q in questions],
            example_ids=[q.example_id for q in questions],
        )
        return scores


def _source_hash(function: Callable[..., Any]) -> str:
    """Hash of the file that the function stands in, so that an edited judge is a new one."""
    try:
        source = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (TypeError, OSError):
        return "unknown"
    return hashlib.blake2b(source, digest_size=16).hexdigest()


class RewardModelJudge:
    """Scores prompt and answer, as the policy's template renders them, with one number.

    The model rests in host memory and is on the accelerator only while it judges.

    Args:
        path: a folder or a name on the hub.
        tokenizer: the policy's tokenizer, which turns token ids into text.
        accelerator: the trainer's accelerator.

    Raises:
        JudgeError: if the model can't be loaded, or has more than one output.
    """

    def __init__(
        self, path: str, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> None:
        try:
            with whole_models():
                self._model = AutoModelForSequenceClassification.from_pretrained(path).eval()
            self._own = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise JudgeError(
                f"{KEY}: {path} can't be loaded as a reward model ({first_line(error)}); allowed "
                f"are {JUDGES.allowed}."
            ) from error
        if self._model.config.num_labels != 1:
            raise JudgeError(
                f"{KEY}: {path} has {self._model.config.num_labels} outputs; a reward model has "
                "one."
            )
        self._own.padding_side = "right"
        self._tokenizer = tokenizer
        self._accelerator = accelerator
        # Such a model reads its score at the last token that is no padding, so an EOS that pads
        # would hide the answer's own.
        self._pads = self._model.config.pad_token_id not in (None, self._own.eos_token_id)
        self._limit = getattr(self._model.config, "max_position_embeddings", None)
        self.identity = f"{Path(path).name}:{fingerprint(self._model)}"

    @torch.no_grad()
    def __call__(self, questions: Sequence[Question]) -> list[float | None]:
        texts = [self._tokenizer.decode([*q.prompt_ids, *q.completion_ids]) for q in questions]
        self._model.to(self._accelerator.device)
        scores: list[float | None] = []
        for batch in [texts] if self._pads else [[text] for text in texts]:
            inputs = self._own(
                batch,
                return_tensors="pt",
                add_special_tokens=False,
                padding=self._pads,
                truncation=self._limit is not None,
                max_length=self._limit,
            ).to(self._accelerator.device)
            scores += self._model(**inputs).logits[:, 0].float().cpu().tolist()
        self._model.to("cpu")
        return scores
