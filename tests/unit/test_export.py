"""A round as a dataset: rows, provenance, the card, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from axolotl.utils.data.shared import load_dataset_with_config
from axolotl.utils.dict import DictDefault
from click.testing import CliRunner, Result
from datasets import Features, load_dataset
from runs_on_disk import texts, write_run

from sera_plugin.commands.cli import sera
from sera_plugin.data.columns import ExportedPairs
from sera_plugin.data.rounds import full_round
from sera_plugin.data.store import RunStore


def export(*args: str | Path) -> Result:
    return CliRunner().invoke(sera, ["export", *map(str, args)])


def refused(*args: str | Path) -> str:
    result = export(*args)
    assert result.exit_code == 1, result.output
    return result.output.strip().splitlines()[-1].removeprefix("Error: ")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("export") / "out")


@pytest.mark.parametrize(("form", "name"), [("axolotl", "train.jsonl"), ("trl", "train.parquet")])
def test_rows_are_the_rounds(run: Path, form: str, name: str) -> None:
    result = export(run, "--round", "3", "--format", form)
    assert result.exit_code == 0, result.output
    folder = run / f"export/round-03-{form}"
    assert result.output == f"{folder}: 28 offline, 12 bootstrapped pairs\n"
    # The card's front matter tells `datasets` which file to read.
    rows = load_dataset(str(folder), split="train").to_list()
    assert {path.name for path in folder.iterdir()} == {"README.md", name}
    stored = pq.read_table(run / "sera/round-03/rows.parquet").to_pylist()
    assert [row["example_id"] for row in rows] == [row["example_id"] for row in stored]
    made = ["offline" if row["chosen_ids"] is None else "bootstrapped" for row in stored]
    assert [row["source"] for row in rows] == made
    said = texts(40)
    for row in rows:
        pair = said[int(row["example_id"][2:])]
        assert row["prompt"] == pair["prompt"]
        assert row["rejected"] == pair["rejected"]
        sampled = row["source"] == "bootstrapped"
        assert row["chosen"] == ("sampled " if sampled else "") + pair["chosen"]
        assert row["chosen_source"] == ("policy" if sampled else "offline_chosen")


def test_swapped_pairs_are_swapped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out")
    path = run / "sera/round-02/rows.parquet"
    table = pq.read_table(path)
    ids = [row["example_id"] for row in table.to_pylist() if row["chosen_ids"] is None]
    flags = [[row["key"] == f"{ids[0]}/offline" for row in table.to_pylist()]]
    place = table.column_names.index("flipped")
    pq.write_table(table.set_column(place, "flipped", flags), path)
    assert export(run, "--round", "2").exit_code == 0
    lines = (run / "export/round-02-axolotl/train.jsonl").read_text().splitlines()
    rows = {row["example_id"]: row for row in map(json.loads, lines) if row["source"] == "offline"}
    pair = texts(40)[int(ids[0][2:])]
    assert rows[ids[0]]["swapped"] is True
    assert rows[ids[0]]["chosen"] == pair["rejected"]
    assert rows[ids[0]]["rejected"] == pair["chosen"]
    assert rows[ids[0]]["chosen_source"] == "offline_rejected"
    assert sum(row["swapped"] for row in rows.values()) == 1


def test_warm_up_round_is_the_whole_dataset(run: Path, tmp_path: Path) -> None:
    assert export(run, "--round", "1", "--out", tmp_path / "all").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "all/train.jsonl").read_text().splitlines()]
    assert sorted(row["prompt"] for row in rows) == sorted(row["prompt"] for row in texts(40))
    assert not any(row["filled"] for row in rows)


def test_warm_up_round_is_what_was_trained_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out")
    RunStore(run).update_summary(1, {"set_aside_ids": ["id000003", "id000005"]})
    assert export(run, "--round", "1", "--out", tmp_path / "set").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "set/train.jsonl").read_text().splitlines()]
    ids = tuple(f"id{number:06d}" for number in range(40))
    trained = full_round(ids, 0, 1, ("id000003", "id000005"))
    assert [(row["example_id"], row["filled"]) for row in rows] == [
        (row.example_id, row.filled) for row in trained
    ]
    assert sum(row["filled"] for row in rows) == 2
    assert "| filled, of all these | 2 |" in (tmp_path / "set/README.md").read_text()


def test_filled_rows_are_marked_also_in_runs_of_earlier_versions(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out")
    path = run / "sera/round-02/rows.parquet"
    table = pq.read_table(path)
    keys = table["key"].to_pylist()
    first = keys.index(next(key for key in keys if key.endswith("/offline")))
    keys[first] += "/2"
    old = table.set_column(0, "key", [keys]).drop_columns(["filled"])
    for name, stored in {"old": old, "new": old.append_column("filled", [[False] * 40])}.items():
        pq.write_table(stored, path)
        assert export(run, "--round", "2", "--out", tmp_path / name).exit_code == 0
        lines = (tmp_path / name / "train.jsonl").read_text().splitlines()
        marked = [json.loads(line)["filled"] for line in lines]
        assert [i for i, filled in enumerate(marked) if filled] == [first]


def test_card(run: Path, tmp_path: Path) -> None:
    assert export(run, "--round", "2", "--format", "trl", "--out", tmp_path / "set").exit_code == 0
    card = (tmp_path / "set/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "train.parquet"}]
    assert "| offline | 28 |" in card
    assert "| bootstrapped | 12 |" in card
    assert "ensemble: 0.3" in card
    assert "DPOTrainer" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("form", ["axolotl", "trl"])
def test_the_snippet_of_the_card_loads_the_data_wherever_the_folder_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    assert export(run, "--round", "1", "--format", form, "--out", tmp_path / "a").exit_code == 0
    monkeypatch.chdir((tmp_path / "a").rename(tmp_path / "elsewhere"))
    snippet = Path("README.md").read_text().split("## Training")[1].split("```")[1]
    if form == "axolotl":
        (entry,) = yaml.safe_load(snippet.removeprefix("yaml"))["datasets"]
        train = load_dataset_with_config(DictDefault(entry), False)
    else:
        (line,) = [line for line in snippet.splitlines() if line.startswith("train = ")]
        train = eval(line.removeprefix("train = "), {"load_dataset": load_dataset})
    assert sorted(train["prompt"]) == sorted(row["prompt"] for row in texts(40))


def test_a_column_of_nulls_keeps_its_type(run: Path, tmp_path: Path) -> None:
    assert export(run, "--round", "1", "--out", tmp_path / "set").exit_code == 0
    train = load_dataset(str(tmp_path / "set"), split="train")
    assert train.features == Features.from_arrow_schema(ExportedPairs.arrow())
    assert train["margin"] == [None] * 40


def test_bad_input_is_one_sentence(run: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none", "--round", "2")
    assert refused(run, "--round", "9") == (
        f"--round 9 is not in {run / 'sera'}; rounds there: 1, 2, 3."
    )
    (run / "sera/.round-04.tmp").mkdir(exist_ok=True)
    assert "--round 4: its folder in" in refused(run, "--round", "4")
    assert "is not complete" in refused(run, "--round", "4")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    assert "is not an empty folder" in refused(run, "--round", "2", "--out", mine)
    assert (mine / "file").read_text() == "mine"
    old = write_run(tmp_path / "old", pairs=False)
    assert "has no pairs.parquet" in refused(old, "--round", "2")
    assert not (old / "export").exists()
    fresh = old.parent / "cut"
    write_run(fresh)
    path = fresh / "sera/round-02/bootstrapped.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert "lacks the new pair of id000000" in refused(fresh, "--round", "2")


def test_no_pairs_left(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out")
    path = run / "sera/pairs.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert refused(run, "--round", "1") == "--round 1 holds no pairs."


def test_hub_that_cannot_be_reached(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    said = refused(run, "--round", "2", "--out", out, "--push-to-hub", "someone/some-set")
    assert said.startswith("--push-to-hub someone/some-set: ")
    assert said.endswith(f"the dataset is in {out}.")
    assert (out / "train.jsonl").is_file()
    assert "  - path: someone/some-set\n    split: train\n" in (out / "README.md").read_text()
