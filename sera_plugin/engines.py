"""The engine that ``sera.bootstrap.engine`` names."""

from __future__ import annotations

from sera_plugin.config import BootstrapConfig
from sera_plugin.generation import Engine
from sera_plugin.paged_engine import PagedEngine
from sera_plugin.transformers_engine import TransformersEngine


def engine_of(settings: BootstrapConfig) -> Engine:
    """What samples the answers of a run."""
    if settings.engine == "transformers_paged":
        return PagedEngine()
    return TransformersEngine()
