"""Text made safe to look at: control characters shown, JSON that can stand inside HTML."""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

_HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def visible(text: str) -> str:
    """``text`` with control and direction characters as pictures or as ``[U+202E]``.

    Line ends and tabs stay.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or character.isprintable():
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"):
        return f"[U+{code:04X}]"
    return character


def json_in_html(value: Any) -> str:
    """JSON for a ``<script type="application/json">`` element, which no text inside can leave.

    Numbers that are not finite become null.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escaped in _HTML.items():
        text = text.replace(character, escaped)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
