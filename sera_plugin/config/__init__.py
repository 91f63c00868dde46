"""The ``sera:`` block: frozen pydantic models and errors of one sentence.

``fields`` has the types of values, ``parts`` the rules, signals, judges and engines by name,
``selection``, ``bootstrap``, ``guard`` and ``refine`` the inner blocks, ``block`` the whole,
``presets`` what stands in the place of its defaults, and ``parsing`` turns raw YAML into it.
"""

from sera_plugin.config.block import SeraArgs, SeraConfig
from sera_plugin.config.bootstrap import BootstrapConfig
from sera_plugin.config.guard import GuardConfig
from sera_plugin.config.parsing import parse_block
from sera_plugin.config.refine import RefineConfig
from sera_plugin.config.selection import ExternalConfig, SelectionConfig

__all__ = [
    "BootstrapConfig",
    "ExternalConfig",
    "GuardConfig",
    "RefineConfig",
    "SelectionConfig",
    "SeraArgs",
    "SeraConfig",
    "parse_block",
]
