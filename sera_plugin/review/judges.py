"""A sequence-classification model as a judge of answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from sera_plugin.config.bootstrap import IMPLICIT
from sera_plugin.config.fields import is_function
from sera_plugin.host.models import fingerprint, whole_models
from sera_plugin.review.judging import KEY, Court, FunctionJudge, Judge, Question
from sera_plugin.runtime.errors import JudgeError, first_line


def court_of(trainer: Any) -> Court | None:
    """The judge that ``sera.bootstrap.judge`` names, on all ranks; None for ``implicit``.

    Raises:
        RuleError: if a function can't be imported.
        JudgeError: if a reward model can't be used.
    """
    settings, accelerator = trainer.sera.bootstrap, trainer.accelerator
    if settings.judge == IMPLICIT or settings.fraction == 0:
        return None
    tokenizer = trainer._tokenizer
    judge: Judge = (
        FunctionJudge(settings.judge, tokenizer)
        if is_function(settings.judge)
        else RewardModelJudge(settings.judge, tokenizer, accelerator)
    )
    replaces = settings.judge_mode == "replace"
    return Court(accelerator, judge, trainer.store.work, replaces, trainer.stop.check)


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
                f"{KEY}: {path} can't be loaded as a reward model ({first_line(error)})."
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
