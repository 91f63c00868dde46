"""What an engine of sampling is, and the one that ``sera.bootstrap.engine`` names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel

from sera_plugin.data.candidates import Draws, Prompt
from sera_plugin.sampling.paged_engine import PagedEngine
from sera_plugin.sampling.settings import EngineParts, Sampling, Serving
from sera_plugin.sampling.transformers_engine import TransformersEngine
from sera_plugin.sampling.vllm_engine import VllmEngine


class Engine(Protocol):
    """Samples answers on this rank.

    Attributes:
        name: ``sera.bootstrap.engine``; stored answers of one engine don't serve another.
        pads: whether prompts of a batch are padded to the longest one.
        cuts: whether a batch that doesn't fit the memory may be sampled in halves.
        token_budget: most padded tokens of a batch; None takes the run's own.
    """

    @property
    def name(self) -> str: ...

    @property
    def pads(self) -> bool: ...

    @property
    def cuts(self) -> bool: ...

    @property
    def token_budget(self) -> int | None: ...

    @classmethod
    def start(cls, parts: EngineParts) -> Engine:
        """The engine of a run. Every rank calls this alike."""

    def serving(self, serving: Serving) -> AbstractContextManager[tuple[PreTrainedModel, bool]]:
        """The model that writes, ready for ``sample``, and whether ranks must take every decoding
        step together. Every rank enters and leaves it alike."""

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


ENGINES: dict[str, type[Engine]] = {
    "transformers": TransformersEngine,
    "transformers_paged": PagedEngine,
    "vllm": VllmEngine,
}


def engine_of(parts: EngineParts) -> Engine:
    """What samples the answers of a run. Every rank must call this alike.

    Raises:
        VllmError: one sentence, if vLLM is named and can't be reached or started.
    """
    name = parts.config.engine if parts.config.fraction > 0 else TransformersEngine.name
    return ENGINES[name].start(parts)
