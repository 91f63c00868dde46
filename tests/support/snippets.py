"""The code and the YAML that stand in a page of the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

EXTENDING = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def write_modules(page: Path, folder: Path) -> list[str]:
    """Write the Python blocks whose first line is ``# name.py`` as files; returns their names."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    for name, code in blocks:
        (folder / name).write_text(code, encoding="utf-8")
    return [name for name, _ in blocks]


def python_blocks(page: Path) -> list[str]:
    """The page's Python, in order."""
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def sera_blocks(page: Path) -> list[dict[str, Any]]:
    """The ``sera:`` blocks of the page's YAML, in order."""
    found = re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    return [yaml.safe_load(text)["sera"] for text in found]
