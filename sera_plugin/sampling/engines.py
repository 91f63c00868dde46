"""The engine that ``sera.bootstrap.engine`` names, and the model it samples from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from transformers import PreTrainedModel

from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.host.models import plugin_config
from sera_plugin.host.vllm_settings import VllmSettings
from sera_plugin.review.pairing import Source
from sera_plugin.sampling.paged_engine import PagedEngine
from sera_plugin.sampling.sampler import Sampler
from sera_plugin.sampling.transformers_engine import TransformersEngine
from sera_plugin.sampling.vllm_engine import VllmEngine
from sera_plugin.scoring.policies import Policies
from sera_plugin.scoring.scorer import Scorer


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
