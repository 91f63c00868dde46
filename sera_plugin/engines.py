"""The engine that ``sera.bootstrap.engine`` names, and the model it samples from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from transformers import PreTrainedModel

from sera_plugin.generation import Sampler
from sera_plugin.host import plugin_config
from sera_plugin.offline import OfflinePairs
from sera_plugin.paged_engine import PagedEngine
from sera_plugin.pairing import Source
from sera_plugin.policies import Policies
from sera_plugin.scoring import Scorer
from sera_plugin.transformers_engine import TransformersEngine
from sera_plugin.vllm_engine import VllmEngine
from sera_plugin.vllm_settings import VllmSettings


def engine_of(trainer: Any) -> TransformersEngine | PagedEngine | VllmEngine:
    """What samples the answers of a run. Every rank must call this alike.

    Raises:
        VllmError: one sentence, if vLLM is named and can't be reached or started.
    """
    settings = trainer.sera.bootstrap
    if settings.engine == "transformers_paged":
        return PagedEngine()
    if settings.engine == "vllm" and settings.fraction > 0:
        return VllmEngine.start(trainer, VllmSettings.of(plugin_config(), settings.vllm_mode))
    return TransformersEngine()


def writing(
    sampler: Sampler, policies: Policies, scorer: Scorer, pairs: OfflinePairs
) -> AbstractContextManager[tuple[PreTrainedModel, bool]]:
    """The model that writes, ready for the sampler's engine, and whether ranks must take every
    decoding step together.

    Args:
        sampler: what samples, for a writer.
        policies: the run's models.
        scorer: finds log-probs, for an engine with weights of its own.
        pairs: D, for the same.
    """
    writer = sampler.settings.writer
    if isinstance(sampler.engine, VllmEngine) and writer is Source.POLICY:
        return sampler.engine.serving(policies, scorer, pairs, sampler.settings.sequence_len)
    return policies.generating(writer)
