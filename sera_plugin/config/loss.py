"""The ``sera.loss`` list: terms beside the host's loss, in the order in which they change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from sera_plugin.config.fields import shown
from sera_plugin.config.parts import TERMS
from sera_plugin.runtime.errors import SeraConfigError


@dataclass(frozen=True)
class LossTerm:
    """One term.

    Attributes:
        name: its name, or the path of one of the user's own.
        settings: its settings as written, or as its class has read them.
    """

    name: str
    settings: Any


def _term(raw: Any) -> dict[str, Any]:
    """A term as ``{name: settings}`` from how the YAML names it: ``name``, or that.

    Raises:
        SeraConfigError: one sentence.
    """
    name: Any = raw
    settings: Any = {}
    if isinstance(raw, Mapping) and len(raw) == 1:
        name, settings = next(iter(raw.items()))
    if not isinstance(name, str):
        raise SeraConfigError(
            f"sera.loss: {shown(raw)} is not a term; write a list of names, each alone or with its "
            f"settings behind it as {TERMS.names[0]}: {{key: value}}; "
            f"available are {TERMS.allowed}."
        )
    if not isinstance(settings or {}, Mapping):
        raise SeraConfigError(
            f"sera.loss.{shown(name).strip(chr(39))}: {shown(settings)} is not allowed; it must be "
            "a block of keys."
        )
    return {TERMS.check(name): {**(settings or {})}}


def _terms(raw: Any) -> Any:
    if raw is False or raw is None:
        return []
    if not isinstance(raw, list | tuple):
        raise SeraConfigError(
            f"sera.loss: {shown(raw)} is not allowed; it must be a list of terms."
        )
    found = [_term(one) for one in raw]
    names = [name for one in found for name in one]
    for name in names:
        if names.count(name) > 1:
            raise SeraConfigError(f"sera.loss: {name} is there twice; a term changes a loss once.")
    return found


LossTerms = Annotated[
    list[dict[str, Any]],
    BeforeValidator(_terms, json_schema_input_type=list[str | dict[str, Any]]),
]
