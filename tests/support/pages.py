"""HTML pages taken apart, and looked at in a browser where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from runs_on_disk import texts

from sera_plugin.commands.audit_table import cuts, ranked
from sera_plugin.commands.cli import sera
from sera_plugin.commands.report.audit_page import audit_page
from sera_plugin.commands.report.page import render
from sera_plugin.data.columns import RankedPairs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)

PROBE = Path(__file__).with_name("probe.js").read_text(encoding="utf-8")
VOID = {"meta", "input", "br", "link", "img", "hr"}


@dataclass
class Element:
    """An element with its attributes, text (that of all within) and ancestors, nearest first."""

    tag: str
    attributes: dict[str, str]
    ancestors: tuple[Element, ...]
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def below(self, *tags: str) -> list[Element]:
        """All elements within, in order."""
        found = [e for child in self.children for e in (child, *child.below())]
        return [element for element in found if not tags or element.tag in tags]

    def table(self) -> list[dict[str, str]]:
        """Rows of the table within, cells by the names of their columns."""
        header, *rows = ([cell.text for cell in row.children] for row in self.below("tr"))
        return [dict(zip(header, row, strict=True)) for row in rows]

    def __getitem__(self, name: str) -> str:
        return self.attributes.get(name, "")


class Outline(HTMLParser):
    """All elements of a page in order; elements that are not closed in order are an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(page)
        assert not self._open, [element.tag for element in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = Element(tag, {k: v or "" for k, v in attrs}, tuple(reversed(self._open)))
        self.elements.append(found)
        if self._open:
            self._open[-1].children.append(found)
        if tag not in VOID:
            self._open.append(found)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            if not any(e.tag in ("script", "style") for e in self._open):
                element.text += data

    def all(self, *tags: str) -> list[Element]:
        return [element for element in self.elements if element.tag in tags]

    def by_id(self, name: str) -> Element:
        (found,) = (element for element in self.elements if element["id"] == name)
        return found


def report_of(run: Path) -> str:
    """The page that `axolotl sera report` writes of a run."""
    result = CliRunner().invoke(sera, ["report", str(run)])
    assert result.exit_code == 0, result.output
    return (run / "sera/report.html").read_text(encoding="utf-8")


def audit_of(count: int = 30) -> str:
    """The page of an audit whose policy doubts a part of the pairs, all of them flipped."""
    said = texts(count)
    margin = np.random.default_rng(2).normal(0.5, 1, count)
    columns: dict[str, Any] = {
        column.value: np.arange(count) if "tokens" in column else margin for column in RankedPairs
    }
    columns |= {"example_id": [f"id{row}" for row in range(count)], "wrong": margin < 0}
    columns |= {name: [row[name] for row in said] for name in ("prompt", "chosen", "rejected")}
    for name in ("rank", "preference_probability"):
        del columns[name]
    table = ranked(columns, 0.1)
    found = cuts(table["margin"].to_numpy(), np.sort(margin) < 0)
    summary = {"config": "cfg.yml", "policy": "out", "reference": "base", "margin": "sum"}
    return render(audit_page(table, found, summary, "wrong"))


def data_of(page: str) -> dict[str, Any]:
    """What the page's script draws."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index, no-any-return]


def browse(path: Path, fragment: str, folder: Path, *flags: str) -> tuple[str, str]:
    """The page's DOM after its scripts have run, and what it wrote to the console."""
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={folder}", "--enable-logging=stderr",
            "--virtual-time-budget=10000", "--window-size=1280,1000", *flags, "--dump-dom",
            f"{path.resolve().as_uri()}{fragment}",
        ],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def probed(page: str, folder: Path, width: int, fragment: str = "", *flags: str) -> dict[str, Any]:
    """What ``probe.js`` measures within the page, in a frame of some width."""
    inner, outer = folder / "inner.html", folder / "outer.html"
    policy = re.search(r'<meta http-equiv="Content-Security-Policy".*?>', page)
    assert policy
    inner.write_text(page.replace(policy[0], "") + f"<script>{PROBE}</script>", encoding="utf-8")
    outer.write_text(
        f'<iframe src="inner.html{fragment}" style="width: {width}px; height: 900px; border: 0">'
        "</iframe><script>onmessage = (e) => { const found = document.createElement('pre');"
        "found.id = 'found'; found.textContent = e.data; document.body.append(found); }</script>"
    )
    dom, _ = browse(outer, "", folder / "profile", *flags)
    return json.loads(html.unescape(dom.split('<pre id="found">')[1].split("</pre>")[0]))  # type: ignore[no-any-return]
