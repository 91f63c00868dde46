"""Types of values, and what all blocks of keys share."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    return value


MOST = 2**31 - 1
Int = Annotated[int, Field(strict=True), BeforeValidator(_not_bool)]
# Pydantic drops one of two bounds of a kind, so a field with an upper bound of its own takes Int.
Count = Annotated[int, Field(strict=True, le=MOST), BeforeValidator(_not_bool)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(_not_bool)]


FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""``package.module:function``."""


def is_function(value: str) -> bool:
    """Whether a value names a function of the user's own."""
    return re.fullmatch(FUNCTION, value) is not None


def shown(value: Any, limit: int = 80) -> str:
    """``value`` as YAML writes it, in printable ASCII and not longer than ``limit``."""
    try:
        text = _in_yaml(value)
    except (ValueError, RecursionError):  # more digits or levels than Python writes out
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _in_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_in_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_in_yaml(k)}: {_in_yaml(v)}' for k, v in value.items())}}}"
    return ascii(value)


def switch(block: Any, *, on: Any, off: Any) -> BeforeValidator:
    """A validator for a block of keys that may be `true` or `false` as well.

    Args:
        block: the model of the block.
        on: the block that `true` is short for.
        off: what `false` is short for.
    """

    def read(raw: Any) -> Any:
        return (on if raw else off) if isinstance(raw, bool) else raw

    return BeforeValidator(read, json_schema_input_type=block | bool)


class Block(BaseModel):
    """A block of keys: frozen, and any other key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
