"""What a report says first, and the numbers behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pages import Outline, data_of, report_of
from runs_on_disk import write_run

from sera_plugin.commands.report.counts import Counts, data_in_words
from sera_plugin.commands.report.figures import KEPT, bin_edges, course, histogram
from sera_plugin.commands.report.signals import Limit


def answers(page: str) -> list[str]:
    """The questions with their answers, one line each."""
    found = [e for e in Outline(page).all("dt", "dd") if e.ancestors[1]["id"] == "answers"]
    said = [" ".join(element.text.split()) for element in found]
    return [f"{question} {answer}" for question, answer in zip(said[::2], said[1::2], strict=True)]


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def margins_of(run: Path, number: int) -> np.ndarray:
    table = pq.read_table(run / f"sera/round-{number:02d}/margins.parquet")
    return table["ensembled_margin"].to_numpy()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    return write_run(folder / "out", evaluated=True, filled=4, signals=True)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return report_of(run)


def test_page_opens_with_three_answers(run: Path, page: str) -> None:
    data, helped, labels = answers(page)
    assert data == (
        "What happened to the data? Round 1 trained on all 40 offline pairs; round 2 kept 28 of 40 "
        "offline pairs, dropped 12, added 8 bootstrapped pairs and filled 4 places (none of them "
        "with negative margins); round 3 kept 28 offline pairs, dropped 12, added 8 bootstrapped "
        "pairs and filled 4 places (none of them with negative margins)."
    )
    assert helped == (
        "Did it help? It seems to have helped since round 1: evaluation accuracy was 60.0%, 70.0% "
        "and 80.0% and loss was 0.690, 0.680 and 0.670 after rounds 1, 2 and 3; the policy drifted "
        "0.900 nats per token from its reference (the guard's limit is 0.5). Whether SeRA did it, "
        "only a run of plain DPO on the same data can say."
    )
    suspect = int((margins_of(run, 3) < 0).sum())
    assert f"{suspect} of 40 labels ({suspect / 40:.1%})" in labels
    assert "axolotl sera audit CONFIG.yml ranks all labels." in labels
    first = Outline(page).all("h2")[0]
    assert first.text == "In short"


def test_suspect_pairs_are_a_link_and_a_filter_away(run: Path, page: str) -> None:
    outline = Outline(page)
    link = next(e for e in outline.all("a") if "suspect pairs" in e.text)
    assert link["href"] == "#pairs=&filter=suspect"
    offered = [e["value"] for e in outline.all("option") if e.ancestors[2].tag != "nav"]
    assert offered[1:3] == ["suspect", "filled"]
    margins = dict(
        zip(
            pq.read_table(run / "sera/round-03/margins.parquet")["example_id"].to_pylist(),
            margins_of(run, 3),
            strict=True,
        )
    )
    rows = data_of(page)["explorers"]["pairs"]["rows"]
    tagged = {row["id"] for row in rows if "suspect" in row["tags"]}
    assert tagged == {example_id for example_id, margin in margins.items() if margin < 0}


def test_filled_pairs_are_marked_in_their_rounds(run: Path, page: str) -> None:
    rows = data_of(page)["explorers"]["pairs"]["rows"]
    for place, number in enumerate((2, 3)):
        table = pq.read_table(run / f"sera/round-{number:02d}/rows.parquet").to_pylist()
        filled = {row["example_id"] for row in table if row["filled"]}
        assert len(filled) == 4
        assert filled == {row["id"] for row in rows if f"filled in round {number}" in row["tags"]}
        of_round = {row["id"] for row in rows if "filled" in row["details"][place][1]}
        assert of_round == filled
    both = {row["id"] for row in rows if "filled" in row["tags"]}
    assert all("filled" in str(row["details"]) for row in rows if row["id"] in both)


def test_run_without_evaluation_pairs_says_so(tmp_path: Path) -> None:
    _, helped, _ = answers(report_of(write_run(tmp_path / "out")))
    assert helped == (
        "Did it help? No evaluation pairs, so this run can't say (test_datasets, val_set_size)."
    )


@pytest.mark.parametrize(
    ("accuracy", "loss", "word"),
    [
        ((0.8, 0.7), (0.6, 0.65), "It seems to have done harm"),
        ((0.8, 0.8), (0.6, 0.6), "It made little difference"),
        ((0.8, 0.7), (0.6, 0.5), "Evaluation accuracy and loss disagree"),
        ((0.8, 0.8), (0.6, 0.5), "It seems to have helped"),
    ],
)
def test_verdict_follows_the_evaluation(
    tmp_path: Path, accuracy: tuple[float, float], loss: tuple[float, float], word: str
) -> None:
    run = write_run(tmp_path / "out", reviews=1)
    log = [
        {"step": 5 * n, "eval_loss": lost, "eval_rewards/accuracies": right}
        for n, (right, lost) in enumerate(zip(accuracy, loss, strict=True), start=1)
    ]
    (run / "sera/log.json").write_text(json.dumps(log))
    assert f"Did it help? {word} since round 1: " in answers(report_of(run))[1]


def test_rounds_with_references_of_their_own_are_not_compared(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", evaluated=True)
    change_json(run / "sera/run.json", sera={"reference": "previous"})
    assert "so this run can't say: evaluation accuracy" in answers(report_of(run))[1]


def test_before_the_first_review_nothing_is_claimed(tmp_path: Path) -> None:
    data, helped, labels = answers(
        report_of(write_run(tmp_path / "out", reviews=0, evaluated=True))
    )
    assert data.endswith("Round 1 trained on all 40 offline pairs.")
    assert "It is too early to say: evaluation accuracy was 60.0% and loss was" in helped
    assert labels.endswith("No review has taken place yet, so no label is doubted.")


def test_run_without_the_column_filled_still_tells_what_filled(tmp_path: Path) -> None:
    """Earlier versions filled with the pairs that selection had dropped, and wrote no column."""
    run = write_run(tmp_path / "out", reviews=1)
    path = run / "sera/round-02/rows.parquet"
    rows = pq.read_table(path).drop_columns(["filled"]).to_pylist()
    margins = margins_of(run, 2)
    lowest = [f"id{row:06d}" for row in np.argsort(margins)[:3]]
    new = [row for row in rows if row["key"].endswith("/policy")][:3]
    for row, example_id in zip(new, lowest, strict=True):
        row |= {"key": f"{example_id}/offline/1", "example_id": example_id, "chosen_ids": None}
    pq.write_table(pa.Table.from_pylist(rows), path)
    page = report_of(run)
    assert (
        "round 2 kept 28 of 40 offline pairs, dropped 9, added 9 bootstrapped pairs and filled 3 "
        f"places ({int((margins < 0).sum().clip(0, 3))} of them with negative margins)"
    ) in answers(page)[0]
    shown = {
        row["id"] for row in data_of(page)["explorers"]["pairs"]["rows"] if "filled" in row["tags"]
    }
    assert shown == set(lowest)


def test_parts_of_a_round_add_up_in_the_table(page: str) -> None:
    rounds = Outline(page).by_id("grid-1").table()
    assert [row["round"] for row in rounds] == ["1 (all pairs)", "2", "3"]
    for row in rounds:
        assert sum(int(row[name]) for name in ("kept", "bootstrapped", "filled")) == 40
        assert int(row["kept"]) + int(row["dropped"]) == 40


def test_signals_have_units_and_limits(page: str) -> None:
    table = Outline(page).by_id("grid-2").table()
    rows = {row["signal"]: [*row.values()][1:] for row in table}
    assert rows["guard_drift"][:4] == [
        "nats per token", "at most 0.5 (max_drift)", "0.600 ▲ past the limit",
        "0.900 ▲ past the limit",
    ]  # fmt: skip
    assert rows["guard_length_correlation"][:3] == [
        "−1 to 1", "at most 0.3, of either sign (max_length_correlation)",
        "-0.400 ▲ past the limit",
    ]  # fmt: skip
    assert rows["signal_length"][:2] == ["tokens", "none"]
    assert rows["signal_surprise"][:2] == ["its own", "none"]
    figures = data_of(page)["figures"]
    titles = [figures[f"signal-{n}"]["layout"]["xaxis"]["title"]["text"] for n in (1, 2)]
    assert titles == ["signal_length, tokens", "signal_surprise, its own"]
    columns = data_of(page)["explorers"]["pairs"]["columns"]
    assert columns[-2:] == ["signal_length", "signal_surprise"]


def test_guard_that_is_off_has_no_limits(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", signals=True)
    guard = {"enabled": False, "max_drift": 0.5}
    change_json(run / "sera/run.json", sera={"bootstrap": {"guard": guard}})
    page = report_of(run)
    assert "The guard is off, so its signals have no limits." in page
    assert "past the limit" not in page.split('id="data"')[0]


@pytest.mark.parametrize(
    ("key", "limit", "inside", "past"),
    [
        ("max_drift", 0.5, -2.0, 0.6),
        ("max_length_correlation", 0.3, -0.2, -0.4),
        ("min_agreement", 0.6, 0.6, 0.5),
    ],
)
def test_signal_is_past_its_limit(key: str, limit: float, inside: float, past: float) -> None:
    assert not Limit(key, limit).passed(inside)
    assert Limit(key, limit).passed(past)


def test_outliers_in_the_end_bins_are_said() -> None:
    values = np.concatenate([np.linspace(-1, 1, 5000), [-80.0, -90.0, 70.0, np.nan]])
    figure = histogram("m", "M", "All.", bin_edges([values]), {"kept": values}, {"kept": KEPT}, "x")
    assert "6 below -0.9988 (the lowest -90) in the first bin" in figure.caption
    assert "6 above 0.9984 (the highest 70) in the last bin" in figure.caption
    assert "Left out, because no finite numbers: 1." in figure.caption
    (trace,) = figure.data
    assert sum(trace["y"]) == 5003
    assert trace["name"] == "kept (5,003)"


def test_values_that_are_no_outliers_have_bins_of_their_own() -> None:
    values = np.linspace(-1, 1, 50)
    edges = bin_edges([values])
    assert (edges[0], edges[-1]) == (-1, 1)
    figure = histogram("m", "M", "All.", edges, {"kept": values}, {"kept": KEPT}, "x")
    assert figure.caption == "All."


def round_of(number: int, **changes: int) -> Counts:
    return replace(Counts(number, True, 70, 30, 20, 10, 0), **changes)


def test_many_rounds_are_told_as_the_first_the_last_and_those_between() -> None:
    found = [replace(round_of(1), reviewed=False, dropped=0), *map(round_of, range(2, 40))]
    found[20] = round_of(21, kept=60, dropped=40, filled=20, filled_negative=3)
    assert data_in_words(found, 100) == (
        "Round 1 trained on all 100 offline pairs; round 2 kept 70 of 100 offline pairs, dropped "
        "30, added 20 bootstrapped pairs and filled 10 places (none of them with negative "
        "margins); rounds 3 to 38 kept 60 to 70 offline pairs, dropped 30 to 40, added 20 "
        "bootstrapped pairs and filled 10 to 20 places (0 to 3 of them with negative margins); "
        "round 39 kept 70 offline pairs, dropped 30, added 20 bootstrapped pairs and filled 10 "
        "places (none of them with negative margins)."
    )
    assert data_in_words([], 100).startswith("No round is finished yet")


def test_long_series_are_put_into_words_by_their_ends_and_extremes() -> None:
    xs, ys = list(range(100)), [1 / (1 + x) for x in range(100)]
    assert course(xs, ys, "at update") == (
        "1 at update 0, 0.01 at update 99, between 0.01 and 1 on the way"
    )
    assert (
        course([2, 3], [0.5, 0.25], "at round", share=True) == "50.0% at round 2, 25.0% at round 3"
    )


def test_bootstrapped_pairs_that_come_again_are_marked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", reviews=1)
    path = run / "sera/round-02/rows.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    again: Mapping[str, Any] = next(row for row in rows if row["key"].endswith("/policy"))
    rows.append({**again, "key": f"{again['key']}/2", "filled": True})
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    page = report_of(run)
    new = data_of(page)["explorers"]["new"]["rows"]
    assert [row["id"] for row in new if "filled" in row["tags"]] == [again["example_id"]]
    assert "added 12 bootstrapped pairs and filled 1 place " in answers(page)[0]
