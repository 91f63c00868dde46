"""What a report looks like and how it behaves, in a browser."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pages import CHROMIUM, audit_of, browse, data_of, probed, report_of
from runs_on_disk import write_run
from test_report_access import palette

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    return write_run(folder / "out", evaluated=True, filled=4, signals=True)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return report_of(run)


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.parametrize("kind", ["run", "audit"])
@pytest.mark.parametrize(("width", "scheme"), [(420, "light"), (1000, "dark")])
def test_page_can_be_read(kind: str, width: int, scheme: str, page: str, tmp_path: Path) -> None:
    """It fits, all texts have contrast, no legend is covered, and a link leads to its pairs."""
    page = page if kind == "run" else audit_of()
    flags = [DARK] if scheme == "dark" else []
    found = probed(page, tmp_path, width, "#pairs=&filter=suspect", *flags)
    assert found["width"] == width
    assert found["needed"] <= width
    colours = palette(scheme)
    assert found["background"] == rgb(colours["back"])
    assert rgb(colours["kept"]) in found["bars"]
    assert found["texts"] > 50
    assert found["faint"] == []
    assert any(plot["both"] for plot in found["plots"])
    assert not [plot["name"] for plot in found["plots"] if plot["covered"]]
    rows = data_of(page)["explorers"]["pairs"]["rows"]
    suspect = sum("suspect" in row["tags"] for row in rows)
    assert 0 < found["shown"] == suspect
    assert found["count"].startswith(f"{suspect} of {len(rows)} pairs")
    assert found["focus"] in ("Offline pairs", "Pairs")


def test_page_in_a_browser(run: Path, page: str, tmp_path: Path) -> None:
    dom, console = browse(run / "sera/report.html", "#pairs=HOSTILE&new=sampled+good7+", tmp_path)
    assert console == ""
    assert "<title>SeRA run</title>" in dom
    for name in data_of(page)["figures"]:
        plot = dom.split(f'id="plot-{name}"')[1].split("</figure>")[0]
        assert "main-svg" in plot
        assert re.search(r'class="(point|trace|boxes|js-line|lines|fills|scatter)', plot), name
    section = dom.split('id="x-pairs"')[1].split("</section>")[0]
    assert "1 of 40 pairs, 1 shown" in section
    assert section.count('<article class="card">') == 1
    assert "<img" not in section
    assert "<script" not in section
    text = html.unescape(re.sub(r"<[^>]+>", "", section))
    assert "</script><script>document.title='taken'</script><img src=x onerror=" in text
    assert "{{ 7 * 7 }} [U+2028] [U+202E]\u2400\u2407\u241b[31m ${alert(1)} &lt;b&gt;" in text
    new = dom.split('id="x-new"')[1].split("</section>")[0]
    assert "2 of 16 pairs, 2 shown" in new
    assert new.count('class="candidate"') == 6


def test_list_opens_with_the_most_negative_margins(run: Path, page: str, tmp_path: Path) -> None:
    dom, console = browse(run / "sera/report.html", "", tmp_path)
    assert console == ""
    section = dom.split('id="x-pairs"')[1].split("</section>")[0]
    assert "40 of 40 pairs, 20 shown" in section
    shown = re.findall(r"<code>(?:<mark>)?(id\d+)", section)
    margins = pq.read_table(run / "sera/round-03/margins.parquet").to_pandas()
    lowest = margins.sort_values("ensembled_margin")["example_id"].tolist()[:20]
    assert shown == lowest


def test_browser_reports_errors_to_this_test(run: Path, page: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.replace("const PAGE = 20;", "const PAGE = 21;"), encoding="utf-8")
    _, console = browse(broken, "", tmp_path / "profile")
    assert "Content Security Policy" in console


def test_rows_open_by_keyboard_and_their_headings_are_in_order(
    run: Path, page: str, tmp_path: Path
) -> None:
    dom, _ = browse(run / "sera/report.html", "", tmp_path)
    section = dom.split('id="x-pairs"')[1].split("</section>")[0]
    cards = section.split('<article class="card">')[1:]
    assert len(cards) == 20
    for card in cards:
        assert [int(level) for level in re.findall(r"<h(\d)", card)] == [3, 4, 4]
        details = card.split("<details>")[1]
        assert details.startswith("<summary>Round by round</summary>")
        assert re.findall(r'<th scope="(\w+)"', details).count("row") == 2
        assert "<th>" not in details
