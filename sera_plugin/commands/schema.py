"""The ``sera:`` block for readers: its JSON schema, or Markdown tables of every key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from sera_plugin.config import SeraConfig
from sera_plugin.config.parsing import allowed_at, block_of
from sera_plugin.config.presets import PRESETS

TOP = "Keys of the block itself."


def json_schema() -> str:
    """The block's JSON schema, indented."""
    return json.dumps(SeraConfig.model_json_schema(), indent=2)


def markdown() -> str:
    """A heading and a table for every block of keys, then one for the presets."""
    parts = [_section(model, path, text) for path, model, text in _blocks(SeraConfig, (), TOP)]
    return "\n\n".join([*parts, _presets()])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


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
    title = ".".join(("sera", *path))
    return f"### `{title}`\n\n{text}\n\n{table(('Key', 'Default', 'Allowed', 'Meaning'), rows)}"


def _presets() -> str:
    rows = [
        (f"`{name}`", ", ".join(_assignments(values)) or "the defaults of the tables above")
        for name, values in PRESETS.items()
    ]
    return f"### Values of the presets\n\n{table(('Preset', 'Values'), rows)}"


def _assignments(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _assignments(value, f"{prefix}{name}.")
        else:
            yield f"`{prefix}{name}: {_value(value)}`"


def _value(value: Any) -> str:
    """A value as one writes it in YAML."""
    return value if isinstance(value, str) and value else json.dumps(value)
