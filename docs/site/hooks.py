"""Pages of the site that stand outside docs/: README.md as its first page, and CONTRIBUTING.md.

Their links lead to docs/, those of the pages in docs/ may lead out of it; on the site all lie
side by side.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
PLOTS = "benchmarks/results"


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=with_links(text, "")))
    for plot in sorted((ROOT / PLOTS).glob("*.svg")):
        files.append(File.generated(config, f"{PLOTS}/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/, as GitHub needs them, lead to what ``on_files`` added."""
    return markdown if page.file.src_uri in PAGES.values() else with_links(markdown, "../")


def with_links(text: str, prefix: str) -> str:
    """``text`` with links of the site; ``prefix`` is the path from its folder to the root."""
    for source, page in PAGES.items():
        text = re.sub(rf"\]\({prefix}{source}(?=[)#])", f"]({page}", text)
    if prefix:
        return text.replace(f"]({prefix}{PLOTS}/", f"]({PLOTS}/")
    return text.replace("](docs/", "](")
