"""The parts that the ``sera:`` block names: one line for each that is built in.

A line says where a part stands, so that the config imports none of them and a run only its own.
In the place of a name the block may hold ``package.module:name``, a part of the user's own.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sera_plugin.config.fields import FUNCTION, is_function, shown
from sera_plugin.runtime.errors import SeraConfigError, in_short


@dataclass(frozen=True)
class Registry:
    """The parts of a kind by name.

    Attributes:
        key: the YAML key that names one.
        entries: ``package.module:name`` of each built-in part.
        own: how a part of the user's own is written.
        other: what else the key may hold, or nothing.
    """

    key: str
    entries: Mapping[str, str]
    own: str = "package.module:function"
    other: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.entries)

    @property
    def allowed(self) -> str:
        """What the key may hold, in words."""
        words = [*self.names, self.own, *([self.other] if self.other else ())]
        return f"{', '.join(words[:-1])}, or {words[-1]}"

    @property
    def schema(self) -> dict[str, Any]:
        """What the key may hold, for the JSON schema of a text."""
        own: dict[str, Any] = {} if self.other else {"pattern": FUNCTION}
        return {"anyOf": [{"enum": list(self.names)}, own], "allowed": self.allowed}

    def check(self, value: str) -> str:
        """``value``, if it is a name or may be a part of the user's own.

        Raises:
            SeraConfigError: if it is neither; the message names the key, the value and the names.
        """
        if value in self.entries or is_function(value) or self.other:
            return value
        close = difflib.get_close_matches(value, self.names, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise SeraConfigError(
            f"{self.key}: {shown(value)} is unknown{hint} Available: {self.allowed}."
        )

    def load(self, value: str) -> Any:
        """What a name or ``package.module:name`` stands for.

        Raises:
            SeraConfigError: one sentence, if it can't be imported or called.
        """
        module, _, name = self.entries.get(value, value).partition(":")
        noun = self.own.partition(":")[2].lower()
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:
            raise SeraConfigError(
                f"{self.key}: {value} can't be imported ({in_short(error)}); write {self.own}, "
                "where the package is installed or its folder is on PYTHONPATH."
            ) from error
        if not callable(found):
            raise SeraConfigError(f"{self.key}: {value} is no {noun}; write {self.own}.")
        return found


def title_of(value: str) -> str:
    """The short name of a part: its name, or what stands behind the colon."""
    return value.rpartition(":")[2]


RULES = Registry(
    "sera.selection.rule",
    {
        "top": "sera_plugin.review.rules:top",
        "band": "sera_plugin.review.rules:band",
        "bottom": "sera_plugin.review.rules:bottom",
        "random": "sera_plugin.review.rules:shuffled",
        "threshold": "sera_plugin.review.rules:above",
        "lossdiff_irm": "sera_plugin.review.rules:lossdiff_irm",
        "external": "sera_plugin.review.rules:external",
    },
)
"""Functions of ``Evidence`` and of keys of ``sera.selection``."""

SIGNALS = Registry(
    "sera.selection.signals",
    {
        "margin": "sera_plugin.review.signals:margin",
        "length": "sera_plugin.review.signals:length",
        "contrast": "sera_plugin.review.signals:contrast",
        "external": "sera_plugin.review.signals:external",
    },
)
"""Functions of ``SignalInput``."""

JUDGES = Registry(
    "sera.bootstrap.judge",
    {
        "implicit": "sera_plugin.review.judges:implicit",
        "contrast": "sera_plugin.review.contrast_judge:contrast",
    },
    other="the path of a reward model",
)
"""Functions of ``JudgeParts`` that make a ``Judge`` or a ``PoolJudge``; the user's own is a reward
function."""

ENGINES = Registry(
    "sera.bootstrap.engine",
    {
        "transformers": "sera_plugin.sampling.transformers_engine:TransformersEngine",
        "transformers_paged": "sera_plugin.sampling.paged_engine:PagedEngine",
        "vllm": "sera_plugin.sampling.vllm_engine:VllmEngine",
    },
    own="package.module:Class",
)
"""Classes with the attributes and methods of ``Engine``."""

TERMS = Registry(
    "sera.loss",
    {
        "refine": "sera_plugin.training.terms.refine:Refine",
        "entropy": "sera_plugin.training.terms.entropy:Entropy",
        "anchor": "sera_plugin.training.terms.anchor:Anchor",
        "offset": "sera_plugin.training.terms.offset:Offset",
        "explore": "sera_plugin.training.terms.explore:Explore",
        "posterior": "sera_plugin.training.terms.posterior:Posterior",
        "uncertainty": "sera_plugin.training.terms.uncertainty:Uncertainty",
    },
)
"""Subclasses of ``Term``; the user's own may be a function that maps a step to a step."""
