"""The report of a run: what it holds, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from pages import data_of, report_of
from runs_on_disk import HOSTILE, write_run

from sera_plugin.commands.cli import sera
from sera_plugin.commands.report.pairs import choose
from sera_plugin.commands.report.visible import json_in_html, visible


def report(*args: str | Path) -> Result:
    return CliRunner().invoke(sera, ["report", *map(str, args)])


def refused(*args: str | Path) -> str:
    result = report(*args)
    assert result.exit_code == 1
    (line,) = result.output.strip().splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "out")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return report_of(run)


def test_page_shows_every_round_and_pair(page: str) -> None:
    data = data_of(page)
    assert {"margins-2", "margins-3", "moves-3", "accuracy", "sizes", "lengths", "loss"} <= set(
        data["figures"]
    )
    counted = [sum(sum(t["y"]) for t in data["figures"][f"margins-{n}"]["data"]) for n in (2, 3)]
    assert counted == [40, 40]
    rows = data["explorers"]["pairs"]["rows"]
    assert len(rows) == 40
    assert "All 40 offline pairs" in page
    new = data["explorers"]["new"]["rows"]
    assert len(new) == 24
    assert [c["roles"] for c in new[-1]["candidates"]] == [["chosen"], [], ["rejected"]]


def test_page_needs_nothing_else(page: str) -> None:
    """Neither scripts nor styles nor images come from elsewhere, and the page forbids it."""
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "default-src 'none'" in outside
    assert not re.search(r"(src|href)=[\"'](?!#)", outside)
    assert "@import" not in outside
    assert "url(" not in outside


def test_numbers_agree_with_the_artifacts(run: Path, page: str) -> None:
    margins = (
        pq.read_table(run / "sera/round-03/margins.parquet").to_pandas().set_index("example_id")
    )
    for row in data_of(page)["explorers"]["pairs"]["rows"]:
        stored = margins.loc[row["id"]]
        assert row["sort"][0] == pytest.approx(stored["ensembled_margin"])
        assert row["tags"][-1] == f"{'kept' if stored['kept'] else 'dropped'} in round 3"
        assert row["chosen"]["text"].split()[0].removeprefix("good") in row[
            "id"
        ] or "hostile" in str(row)


def test_hostile_text_is_text_in_the_file(page: str) -> None:
    assert page.count("</script>") == 3
    assert "\u2028" not in page.split("<script>")[0]
    hostile = next(r for r in data_of(page)["explorers"]["pairs"]["rows"] if r["id"] == "id000001")
    assert hostile["prompt"]["text"].endswith(HOSTILE)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("large") / "out", 100_000, reviews=1, words=40)


@pytest.mark.slow
def test_large_run_stays_below_10_megabytes(large: Path) -> None:
    result = report(large)
    assert result.exit_code == 0, result.output
    page = large / "sera/report.html"
    assert page.stat().st_size < 10_000_000
    rows = data_of(page.read_text(encoding="utf-8"))["explorers"]["pairs"]["rows"]
    assert 500 < len(rows) < 100_000
    assert "of 100,000 offline pairs" in page.read_text(encoding="utf-8")
    rest = pq.read_table(large / "sera/report-pairs.parquet").to_pandas()
    assert len(rest) == 100_000
    assert {"prompt", "chosen", "rejected", "margin_round_2", "kept_round_2"} <= set(rest.columns)
    order = rest.sort_values("ensembled_margin_round_2")["example_id"].tolist()
    shown = {row["id"] for row in rows}
    assert set(order[:100]) <= shown
    assert set(order[-100:]) <= shown
    assert str(large / "sera/report-pairs.parquet") in result.output


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    page = report_of(write_run(tmp_path / "out", 5, words=2000))
    row = data_of(page)["explorers"]["pairs"]["rows"][0]
    assert len(row["prompt"]["text"]) == 4000
    assert row["prompt"]["more"] > 1000


def test_run_without_a_review(tmp_path: Path) -> None:
    page = report_of(write_run(tmp_path / "out", reviews=0))
    assert "No review has taken place yet" in page
    assert "1 of 2 rounds trained" in page
    assert "loss" in data_of(page)["figures"]


def test_run_that_has_just_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", reviews=0)
    shutil.rmtree(run / "sera/round-01")
    (run / "sera/log.json").unlink()
    page = report_of(run)
    assert "No round is finished yet" in page
    assert data_of(page)["figures"].keys() == {"lengths"}


def test_half_written_round_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", reviews=1)
    (run / "sera/.round-03.tmp").mkdir()
    (run / "sera/.round-03.tmp/margins.parquet").write_bytes(b"PAR1")
    page = report_of(run)
    assert "Round 3 is not complete on disk and is left out." in page
    assert "margins-2" in data_of(page)["figures"]


def test_run_of_an_earlier_version(tmp_path: Path) -> None:
    page = report_of(write_run(tmp_path / "out", pairs=False))
    assert "The run kept no pairs.parquet" in page
    assert "pairs" not in data_of(page)["explorers"]


def test_decisions_are_shown_as_they_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out")
    path = run / "sera/round-02/summary.json"
    summary = json.loads(path.read_text()) | {
        "guard": {"decision": "shrink <b>", "kl": 3.5},
        "guard_level": 2.0,
    }
    path.write_text(json.dumps(summary))
    page = report_of(run)
    assert "Decisions" in page
    assert "decision: shrink &lt;b&gt;" in page
    assert "guard_level" in page


def test_folder_of_the_artifacts_and_an_own_path(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.html"
    assert report(run / "sera", "--out", out).exit_code == 0
    assert "SeRA run" in out.read_text(encoding="utf-8")
    assert report(run, "--out", out).exit_code == 0  # a page of ours is replaced


def test_bad_input_is_one_sentence(run: Path, tmp_path: Path) -> None:
    assert "nowhere does not exist" in refused(tmp_path / "nowhere")
    assert "holds no sera/run.json" in refused(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused(tmp_path / "file")
    assert "is there and is not a report" in refused(run, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert "can't be written" in refused(run, "--out", tmp_path / "none" / "report.html")
    assert "is a folder" in refused(run, "--out", tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "run.json").write_text('{"name": "another tool"}')
    assert "was not written by a SeRA run" in refused(foreign)
    (foreign / "run.json").write_text('{"sera": ')
    assert "run.json can't be read" in refused(foreign)


def test_damaged_round_is_one_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out")
    path = run / "sera/round-02/margins.parquet"
    path.write_bytes(path.read_bytes()[:200])
    assert "round-02/margins.parquet can't be read" in refused(run)
    run = write_run(tmp_path / "out2")
    fresh = run / "sera/round-03/bootstrapped.jsonl"
    fresh.write_text(fresh.read_text()[:-20])
    assert "bootstrapped.jsonl can't be read" in refused(run)


def test_choice_holds_the_extremes_and_the_threshold() -> None:
    scores = np.linspace(-1, 1, 1000)
    scores[7] = np.nan
    rows = choose(scores, np.full(1000, 10), 400, line=0.5)
    assert len(rows) == 40
    assert {0, 7, 999} <= set(rows.tolist())
    assert np.min(np.abs(scores[rows] - 0.5)[np.isfinite(scores[rows])]) < 0.002
    assert choose(scores, np.full(1000, 10), 10_000, None).tolist() == list(range(1000))


def test_what_cannot_be_seen_is_shown() -> None:
    shown = visible("a\nb\t\x00\x1b\x7f\x85\u202e\u200b é")
    assert shown == "a\nb\t\u2400\u241b\u2421[U+0085][U+202E][U+200B] é"
    text = json_in_html({"a": "</script>\u2028<!--", "b": float("nan")})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script>\u2028<!--", "b": None}


def test_picture_in_the_docs_is_of_this_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If this fails: ``make picture``, which trains the demo and needs Chromium."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    import picture

    assert picture.PICTURE.is_file()
    assert picture.DIGEST.read_text(encoding="utf-8").strip() == picture.digest()
    changed = shutil.copytree(picture.TEMPLATES, tmp_path / "templates")
    with open(changed / "page.css", "a", encoding="utf-8") as style:
        style.write("h1 { color: red; }")
    monkeypatch.setattr(picture, "TEMPLATES", changed)
    assert picture.DIGEST.read_text(encoding="utf-8").strip() != picture.digest()
