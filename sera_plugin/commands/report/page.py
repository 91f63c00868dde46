"""What a page holds, and its rendering: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sera_plugin.commands.report.visible import json_in_html, visible
from sera_plugin.runtime.errors import RunError
from sera_plugin.runtime.files import check_replaceable, write_whole
from sera_plugin.runtime.version import __version__

MARK = '<meta name="generator" content="sera_plugin'
"""Every page begins with it, so that nothing but a page of ours is ever replaced."""


@dataclass(frozen=True)
class Link:
    """A link within the page: to an id, or to a list, ``#pairs=SEARCH&filter=TAG&order=NUMBER``."""

    text: str
    href: str


@dataclass(frozen=True)
class Answer:
    """A question that a reader asks first, answered.

    Attributes:
        question: heading.
        text: a sentence.
        link: where to read on.
        command: a command line that says more.
        note: what stands behind the command, or behind the sentence.
    """

    question: str
    text: str
    link: Link | None = None
    command: str = ""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        name: unique on the page.
        title: heading.
        caption: what it shows, in one or two sentences.
        words: what is to be seen in it, for those who don't see it.
        data: plotly traces; colours may be names of the style sheet, ``var(--kept)``.
        layout: plotly layout.
        link: where its data can be read without a pointer.
    """

    name: str
    title: str
    caption: str
    words: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    link: Link | None = None


@dataclass(frozen=True)
class Explorer:
    """A searchable list of pairs.

    Attributes:
        name: unique on the page.
        title: heading.
        note: what is shown, and where the rest is.
        rows: objects with ``id``, ``prompt``, ``chosen``, ``rejected``, ``tags`` (for the filter),
            ``shown`` (the tags to be seen), ``numbers`` (label, value), ``sort`` (one number per
            order, or null), ``details`` (rows of a table, opened by hand) and ``candidates``.
        filters: tags to filter by, in order.
        orders: name of each order; the first is the default. Rising by ``sort``.
        columns: header of the details.
    """

    name: str
    title: str
    note: str
    rows: Sequence[Mapping[str, Any]]
    filters: Sequence[str]
    orders: Sequence[str]
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class Grid:
    """A plain table: a header, and rows whose first cell is a heading.

    Attributes:
        title: heading.
        note: a sentence above it.
        header: column names.
        rows: cells as text.
        folded: whether it is opened by hand.
        prose: names of the columns that hold words.
    """

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    prose: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """Everything on a page, in its order.

    Attributes:
        title: of the page.
        subtitle: below it.
        state: a word or two in a badge.
        answers: what a reader asks first.
        notices: sentences to read next.
        tiles: label and value of the main numbers.
        grids: tables of numbers.
        figures: plots.
        explorers: lists of pairs.
        settings: what the run was started with, as text.
    """

    title: str
    subtitle: str
    state: str
    answers: Sequence[Answer]
    notices: Sequence[str]
    tiles: Sequence[tuple[str, str]]
    grids: Sequence[Grid]
    figures: Sequence[Figure]
    explorers: Sequence[Explorer]
    settings: str


def render(page: Page) -> str:
    """The page as HTML, with plotly and all data inside."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sera_plugin.commands.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    plotly = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")
    script, style = _own("page.js"), _own("page.css")
    data = {
        "figures": {f.name: {"data": f.data, "layout": f.layout} for f in page.figures},
        "explorers": {e.name: {"rows": e.rows, "columns": e.columns} for e in page.explorers},
    }
    return environment.get_template("page.html.j2").render(
        page=page,
        version=__version__,
        plotly=plotly,
        script=script,
        style=style,
        data=json_in_html(data),
        hashes=[_hash(plotly), _hash(script)],
    )


def write_page(page: Page, path: Path) -> int:
    """Write a page whole or not at all, and return its size in bytes.

    Raises:
        RunError: one sentence, if something that is not a page of ours stands there, or it can't
            be written.
    """
    try:
        if path.is_dir():
            raise RunError(f"--out {path} is a folder; name a file.")
        check_replaceable(path)
        if path.exists() and MARK not in path.read_text("utf-8", errors="replace")[:400]:
            raise RunError(f"--out {path} is there and is not a report; name another file.")
        content = render(page).encode("utf-8")
        write_whole(path, content)
    except OSError as error:
        raise RunError(f"{path} can't be written ({error.strerror or error}).") from error
    return len(content)


def _own(name: str) -> str:
    return (resources.files("sera_plugin.commands.report") / "templates" / name).read_text("utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode()
