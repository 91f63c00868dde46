"""How a rule and signals are named in ``sera.selection``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from sera_plugin.config.parts import RULES, SIGNALS, title_of
from sera_plugin.runtime.errors import SeraConfigError

RuleName = Annotated[str, Field(max_length=500), AfterValidator(RULES.check)]
SignalName = Annotated[
    str,
    Field(max_length=500, json_schema_extra={"anyOf": SIGNALS.schema["anyOf"]}),
    AfterValidator(SIGNALS.check),
]
BY = replace(SIGNALS, key="sera.selection.by")
By = Annotated[
    list[Annotated[str, Field(max_length=500), AfterValidator(BY.check)]],
    Field(min_length=1, max_length=20),
    BeforeValidator(
        lambda raw: [raw] if isinstance(raw, str) else raw,
        json_schema_input_type=str | list[str],
    ),
]


def check_differ(key: str, names: Sequence[str]) -> None:
    """Check that no signal is there twice, by its short name.

    Raises:
        SeraConfigError: one sentence.
    """
    titles = [title_of(name) for name in names]
    twice = [title for title in titles if titles.count(title) > 1]
    if twice:
        raise SeraConfigError(
            f"{key}: {twice[0]} is there twice; every signal needs a name of its own."
        )
