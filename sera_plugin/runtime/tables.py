"""Tables that fit where they are shown: a column for each thing, as many side by side as fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table
from rich.text import Text


def side_by_side(
    title: str, corner: str, columns: Mapping[str, Mapping[str, str]], width: int
) -> Iterator[Table]:
    """Tables below each other, the first with a title.

    Args:
        title: of them all.
        corner: what the headings are.
        columns: under each heading the values by row, the same rows everywhere.
        width: of a table, in characters.
    """
    headings = list(columns)
    rows = list(next(iter(columns.values()), ()))
    texts = [text for values in columns.values() for text in values.values()]
    label = max(map(len, (corner, *rows))) + 4
    fit = max(1, (width - label) // (max(map(len, (*columns, *texts)), default=0) + 3))
    for start in range(0, len(headings), fit):
        part = headings[start : start + fit]
        table = Table(title=title if start == 0 else None, title_justify="left")
        table.add_column(corner, overflow="fold")
        for heading in part:
            table.add_column(heading, justify="right", overflow="fold")
        for name in rows:
            table.add_row(*map(Text, (name, *(columns[heading][name] for heading in part))))
        yield table
