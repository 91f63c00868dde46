"""The ``sera:`` block: frozen pydantic models and errors of one sentence.

``fields`` has the types of values, ``parts`` rules, signals, judges, engines and terms by name,
``selection``, ``bootstrap``, ``guard``, ``refine`` and ``loss`` the inner blocks, ``block`` the
whole, ``presets`` what stands in the place of its defaults, and ``parsing`` reads raw YAML.
"""

from sera_plugin.config.block import SeraArgs, SeraConfig
from sera_plugin.config.bootstrap import BootstrapConfig
from sera_plugin.config.external import ExternalConfig
from sera_plugin.config.guard import GuardConfig
from sera_plugin.config.loss import LossTerm
from sera_plugin.config.parsing import parse_block
from sera_plugin.config.refine import RefineConfig
from sera_plugin.config.selection import SelectionConfig

__all__ = [
    "BootstrapConfig",
    "ExternalConfig",
    "GuardConfig",
    "LossTerm",
    "RefineConfig",
    "SelectionConfig",
    "SeraArgs",
    "SeraConfig",
    "parse_block",
]
