"""Fills the generated parts of the pages from the package: ``python docs/generate.py [--check]``.

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. With ``--check`` nothing is
written, and the exit status is 1 if a page is not what the package says.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sera_plugin.commands import schema
from sera_plugin.config.parsing import allowed_at
from sera_plugin.config.parts import TERMS
from sera_plugin.data.columns import (
    BootstrappedPairs,
    Candidates,
    Margins,
    Pairs,
    Refinement,
    Rows,
    markdown,
)
from sera_plugin.data.metrics import metrics_as_markdown
from sera_plugin.training.terms.term import term_class

DOCS = Path(__file__).parent
FILES = (Pairs, Margins, Rows, Candidates, BootstrappedPairs, Refinement)


def terms_as_markdown() -> str:
    """A table of the keys of every term that no block of the configuration has."""
    rows = []
    for name in TERMS.names:
        model = term_class(name).Settings
        for key, field in model.model_fields.items() if name != "refine" else ():
            default = json.dumps(field.default).strip('"')
            allowed, meaning = allowed_at((key,), model), field.description or ""
            rows.append((f"`{name}.{key}`", f"`{default}`", allowed, meaning))
    return markdown(("Key", "Default", "Allowed", "Meaning"), rows)


PARTS: Mapping[str, Callable[[], str]] = {
    "configuration": schema.markdown,
    "terms": terms_as_markdown,
    "metrics": metrics_as_markdown,
    **{columns.file: columns.as_markdown for columns in FILES},
}
"""Makers of the parts by name."""

MARKED = re.compile(r"(<!-- generated: (\S+) -->).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """A page with its generated parts made anew.

    Raises:
        ValueError: if a part has a name that nothing makes.
    """

    def part(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        if name not in PARTS:
            raise ValueError(f"Unknown part {name!r}. Available: {', '.join(PARTS)}.")
        return f"{begin}\n\n{PARTS[name]()}\n\n{end}"

    return MARKED.sub(part, text)


def stale(folder: Path = DOCS) -> Iterator[tuple[Path, str]]:
    """Pages that are not what the package says, and what they should be."""
    for page in sorted(folder.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (made := filled(text)) != text:
            yield page, made


def main(*arguments: str) -> int:
    """The exit status."""
    check = "--check" in arguments
    pages = list(stale())
    for page, made in pages:
        print(f"{page} {'is stale: run `python docs/generate.py`' if check else 'is written anew'}")
        if not check:
            page.write_text(made, encoding="utf-8")
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
