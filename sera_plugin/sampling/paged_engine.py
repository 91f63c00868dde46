"""Completions by continuous batching of transformers.

They share a cache of blocks. One that is finished leaves at once, and prompts are not padded.
Token t of candidate k of an example is drawn as ``transformers_engine`` draws it, from the same
number, so both engines give the same answers up to rounding of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedModel

from sera_plugin.config import SeraConfig
from sera_plugin.host.checks import sharded
from sera_plugin.host.paged import PagedRequest, paged_answers
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.sampling.transformers_engine import TransformersEngine, only_drawn, warpers
from sera_plugin.scoring.logps import causal_lm

if TYPE_CHECKING:
    from sera_plugin.data.candidates import Draws, Prompt
    from sera_plugin.sampling.settings import Sampling


@dataclass(frozen=True)
class PagedEngine(TransformersEngine):
    """Samples with a ``ContinuousBatchingManager``; served as ``TransformersEngine`` is."""

    name: ClassVar[str] = "transformers_paged"
    pads: ClassVar[bool] = False

    @staticmethod
    def check(cfg: Any, config: SeraConfig) -> None:
        """Refuse weights that are spread over processes.

        Raises:
            SeraConfigError: one sentence.
        """
        how = sharded(cfg)
        if how:
            raise SeraConfigError(
                f"sera.bootstrap.engine: transformers_paged can't be used under {how}, where no "
                "process holds the weights; use transformers, or ZeRO-1, ZeRO-2 or DDP."
            )

    def sample(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        settings: Sampling,
        draws: Draws,
        *,
        synced: bool,
    ) -> list[list[np.ndarray]]:
        """See ``engines.Engine``.

        Raises:
            RuntimeError: if an answer is missing, or memory runs out, or ``synced`` is asked for.
        """
        if synced:
            raise RuntimeError(
                "sera.bootstrap.engine: transformers_paged can't sample from weights that are "
                "spread over processes; use transformers."
            )
        copies = settings.num_candidates
        greedy = settings.temperature == 0
        requests = {
            f"{number}/{copy}": PagedRequest(
                prompt.token_ids, room, None if greedy else draws(prompt, copy, room)
            )
            for number, prompt in enumerate(prompts)
            for room in [settings.room(len(prompt.token_ids))]
            for copy in range(copies)
        }
        with torch.no_grad():
            found = paged_answers(
                causal_lm(model),
                requests,
                sorted(settings.stops),
                [] if greedy else warpers(settings),
                None if greedy else only_drawn,
            )
        answers = [np.array(found[name], dtype=np.int32) for name in requests]
        return [answers[i : i + copies] for i in range(0, len(answers), copies)]
