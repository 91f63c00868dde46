"""Generated parts of a page, between two comments that name them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def fill(page: Path, name: str, text: str) -> None:
    """Put text between the markers of a part.

    Raises:
        SystemExit: if the page has no such part.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no place between {begin} and {end}.")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; rows that are short end in dashes."""
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    filled = [[*row, *["–"] * (len(heads) - len(row))] for row in rows]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in filled)])
