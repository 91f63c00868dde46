"""The ``sera:`` block for readers: its JSON schema, or Markdown tables of every key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from sera_plugin.config import SeraConfig
from sera_plugin.config.parsing import allowed_at, block_of
from sera_plugin.config.presets import PRESETS
from sera_plugin.data.columns import markdown as markdown_table

TOP = "Keys of the block itself."


def json_schema() -> str:
    """The block's JSON schema, indented."""
    return json.dumps(SeraConfig.model_json_schema(), indent=2)


def markdown() -> str:
    """A heading and a table for every block of keys, then one for the presets."""
    parts = [_section(model, path, text) for path, model, text in _blocks(SeraConfig, (), TOP)]
    return "\n\n".join([*parts, _presets()])


def _blocks(
    model: type[BaseModel], path: tuple[str, ...], text: str
) -> Iterator[tuple[tuple[str, ...], type[BaseModel], str]]:
    """Every block below ``sera:`` with its path and what it is for, outer blocks first."""
    yield path, model, text
    for name, field in model.model_fields.items():
        inner = block_of(field.annotation)
        if inner is not None:
            yield from _blocks(inner, (*path, name), field.description or "")


def _section(model: type[BaseModel], path: tuple[str, ...], text: str) -> str:
    rows = [
        (
            f"`{'.'.join((*path, name))}`",
            f"`{_value(field.default)}`",
            allowed_at((*path, name)),
            field.description or "",
        )
        for name, field in model.model_fields.items()
        if block_of(field.annotation) is None
    ]
    table = markdown_table(("Key", "Default", "Allowed", "Meaning"), rows)
    return f"### `{'.'.join(('sera', *path))}`\n\n{text}\n\n{table}"


def _presets() -> str:
    rows = [
        (f"`{name}`", ", ".join(_assignments(values)) or "the defaults of the tables above")
        for name, values in PRESETS.items()
    ]
    return f"### Values of the presets\n\n{markdown_table(('Preset', 'Values'), rows)}"


def _assignments(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _assignments(value, f"{prefix}{name}.")
        else:
            yield f"`{prefix}{name}: {_value(value)}`"


def _value(value: Any) -> str:
    """A value as one writes it in YAML."""
    return value if isinstance(value, str) and value else json.dumps(value)
