"""A report can be read by everyone: with a keyboard, by ear, in the dark, on a small screen."""

from __future__ import annotations

import itertools
import re
from importlib import resources

import numpy as np
import pytest
from pages import Outline, audit_of, data_of, report_of
from runs_on_disk import write_run

from sera_plugin.commands.report.figures import COLOURS, DASHES, HATCHES, STATES
from sera_plugin.commands.report.run_figures import SYMBOLS

STYLE = (resources.files("sera_plugin.commands.report") / "templates/page.css").read_text("utf-8")


@pytest.fixture(scope="module", params=["run", "audit"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "audit":
        return audit_of()
    out = tmp_path_factory.mktemp("access") / "out"
    return report_of(write_run(out, evaluated=True, filled=4, signals=True))


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def test_an_audit_answers_first_too() -> None:
    page = audit_of()
    answers = " ".join(Outline(page).by_id("answers").text.split())
    rows = data_of(page)["explorers"]["pairs"]["rows"]
    wrong = sum(dict(row["numbers"])["margin"] < 0 for row in rows)
    assert f"{wrong} of 30 labels ({wrong / 30:.1%})" in answers
    assert "100.0% of them are known to be wrong." in answers
    assert f"axolotl sera audit cfg.yml --keep {1 - wrong / 30:.2f}" in answers
    assert sum("suspect" in row["tags"] for row in rows) == wrong


def test_headings_are_in_order(outline: Outline) -> None:
    levels = [int(heading.tag[1]) for heading in outline.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_ids_are_unique_and_references_lead_to_text(outline: Outline) -> None:
    ids = [element["id"] for element in outline.elements if element["id"]]
    assert len(set(ids)) == len(ids)
    for element in outline.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            if element[name]:
                assert outline.by_id(element[name]).text.strip()


def test_tables_have_captions_and_scopes_and_can_be_scrolled(outline: Outline) -> None:
    tables = outline.all("table")
    assert tables
    for table in tables:
        assert table.children[0].tag == "caption"
        assert table.children[0].text
        region = table.ancestors[0]
        assert (region["tabindex"], region["role"]) == ("0", "region")
        assert region["aria-label"]
    for cell in outline.all("th"):
        assert cell["scope"] == ("col" if cell.ancestors[1].tag == "thead" else "row")
        assert cell.text.strip()


def test_every_plot_has_a_name_and_is_put_into_words(page: str, outline: Outline) -> None:
    plots = {
        element["data-figure"]: element for element in outline.all("div") if element["data-figure"]
    }
    assert plots.keys() == data_of(page)["figures"].keys()
    for name, plot in plots.items():
        assert plot["role"] == "img"
        assert outline.by_id(plot["aria-labelledby"]).tag == "h3"
        words = outline.by_id(plot["aria-describedby"]).text
        assert re.search(r"\d", words), name
        for trace in data_of(page)["figures"][name]["data"]:
            assert re.sub(r" \([\d,]+\)$", "", trace["name"]) in words


def test_lists_have_a_live_count_and_labelled_controls(outline: Outline) -> None:
    lists = [e for e in outline.all("section") if e["data-explorer"]]
    assert lists
    for section in lists:
        (count,) = (e for e in section.below("span") if e["class"] == "count")
        assert (count["role"], count["aria-live"]) == ("status", "polite")
        controls = section.below("input", "select")
        assert len(controls) == 3
        assert all(control["aria-label"] for control in controls)
        assert section.children[0].tag == "h2"


def test_links_lead_to_places_and_filters_that_exist(page: str, outline: Outline) -> None:
    ids = {element["id"] for element in outline.elements}
    explorers = data_of(page)["explorers"]
    for link in outline.all("a"):
        target = link["href"].removeprefix("#")
        name, searched, rest = target.partition("=")
        if not searched:
            assert target in ids
            continue
        assert name in explorers
        options = outline.by_id(f"x-{name}").below("option")
        for chosen in re.findall(r"&\w+=([^&]+)", rest):
            assert chosen in {option["value"] for option in options}


def test_plots_leave_the_control_bar_a_place_of_its_own(page: str) -> None:
    for figure in data_of(page)["figures"].values():
        assert figure["layout"]["legend"]["y"] < 0
        assert figure["layout"]["margin"]["t"] >= 34


def palette(scheme: str) -> dict[str, str]:
    """Colours of the style sheet by name, in the reader's scheme."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    found = dict(re.findall(r"--(\w+): (#\w+);?", light))
    return found | (dict(re.findall(r"--(\w+): (#\w+);?", dark)) if scheme == "dark" else {})


def linear(colour: str) -> np.ndarray:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    values = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2."""
    first, second = (float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


SERIES = [colour[6:-1] for colour in COLOURS]
ON_ANOTHER = [
    *((ink, ground) for ink in ("ink", "soft", "accent") for ground in ("back", "card")),
    *((ink, "head") for ink in ("headink", "headsoft")),
    ("headink", "badge"), ("ink", "notice"), ("ink", "tag"), ("good", "goodback"),
    ("bad", "badback"), ("warn", "warnback"), ("ink", "goodback"), ("ink", "badback"),
    ("ctl", "ctlback"), ("ink", "mark"), *((name, "card") for name in SERIES),
]  # fmt: skip
"""Colours that stand on one another."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme: str) -> None:
    colours = palette(scheme)
    low = {pair: contrast(*(colours[name] for name in pair)) for pair in ON_ANOTHER}
    assert not {pair: ratio for pair, ratio in low.items() if ratio < 4.5}


# Machado, Oliveira and Fernandes (2009), severity 1.
BLIND = {
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", BLIND)
def test_kept_and_dropped_differ_for_who_sees_no_red_or_green(scheme: str, kind: str) -> None:
    colours = palette(scheme)
    for one, other in (("kept", "dropped"), ("kept", "filled"), ("good", "bad")):
        seen = (np.array(BLIND[kind]) @ linear(colours[name]) for name in (one, other))
        blue_against_yellow = [float(c[2] - (c[0] + c[1]) / 2) for c in seen]
        assert abs(blue_against_yellow[0] - blue_against_yellow[1]) > 0.15


def test_nothing_is_told_apart_by_colour_alone() -> None:
    hatches = [HATCHES.get(colour, "") for colour in STATES.values()]
    assert len(set(hatches)) == len(STATES) == len(set(SYMBOLS.values()))
    assert len(set(DASHES)) == len(DASHES)
