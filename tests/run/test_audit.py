"""Ranking suspicious labels: the ranking itself, and the command after a real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from command_line import MakeConfig, RunCli, dataset_entry, output_dir
from datasets import load_dataset

from sera_plugin.commands.audit_policy import find_policy
from sera_plugin.commands.audit_table import cuts, ranked, write_card, write_kept, write_results
from sera_plugin.commands.cli import sera
from sera_plugin.runtime.errors import SeraConfigError

LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
FLIPPED = 0.2


NUMBERS = (
    "chosen_log_ratio",
    "rejected_log_ratio",
    "policy_chosen_logp",
    "policy_rejected_logp",
    "chosen_tokens",
    "rejected_tokens",
)


def columns(margins: list[float]) -> dict[str, Any]:
    rows = range(len(margins))
    texts = {name: [f"{name} {n}" for n in rows] for name in ("prompt", "chosen", "rejected")}
    return {
        "example_id": [f"id{n}" for n in rows],
        "margin": np.array(margins),
        **dict.fromkeys(NUMBERS, np.zeros(len(margins))),
        **texts,
        "own": [f"row {n}" for n in rows],
    }


def test_ranking_is_by_rising_margin_and_unknown_margins_come_last() -> None:
    table = ranked(columns([0.5, float("nan"), -2.0, 0.5]), 0.1)
    assert table["rank"].to_pylist() == [1, 2, 3, 4]
    assert table["example_id"].to_pylist() == ["id2", "id0", "id3", "id1"]
    assert table["own"].to_pylist() == ["row 2", "row 0", "row 3", "row 1"]
    probability = table["preference_probability"].to_pylist()
    assert probability[0] == pytest.approx(1 / (1 + np.exp(0.2)))


def test_cuts_count_what_they_catch() -> None:
    margins = np.array([-3.0, -2.0, -1.0, *np.linspace(0.1, 5, 97)])
    wrong = np.zeros(100, dtype=bool)
    wrong[[0, 2, 50, 99]] = True
    found = {cut.pairs: cut for cut in cuts(margins, wrong)}
    assert list(found) == [1, 2, 3, 5, 10, 20, 30, 50]  # 3 margins are negative
    assert (found[3].precision, found[3].recall, found[3].margin) == (2 / 3, 0.5, -1.0)
    assert (found[1].precision, found[1].recall) == (1.0, 0.25)
    assert cuts(margins)[0].precision is None
    assert cuts(np.array([1.0, np.nan, np.nan]))[-1].pairs == 1


def test_files(tmp_path: Path) -> None:
    table = ranked(columns([0.5, float("nan"), -2.0, 0.7]), 0.1)
    write_results(table, tmp_path / "audit", {"pairs": 4})
    lines = [json.loads(line) for line in (tmp_path / "audit/ranked.jsonl").open()]
    assert [line["rank"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["margin"] is None
    assert pq.read_table(tmp_path / "audit/ranked.parquet").num_rows == 4
    assert write_kept(table, 0.5, tmp_path / "kept.jsonl") == 2


@pytest.mark.parametrize("kept", [True, False])
def test_datasets_loads_the_folder(tmp_path: Path, kept: bool) -> None:
    table = ranked(columns([0.5, float("nan"), -2.0, 0.7]), 0.1)
    write_results(table, tmp_path, {"pairs": 4})
    if kept:
        write_kept(table, 0.5, tmp_path / "kept.jsonl")
        (tmp_path / "report.html").write_text("a page")
    write_card(tmp_path, kept=kept)
    found = load_dataset(str(tmp_path), split="train")
    assert found["rank"] == [1, 2, 3, 4]
    assert found.column_names == table.column_names
    if kept:
        rest = load_dataset(str(tmp_path), "kept", split="train")
        assert rest["example_id"] == ["id0", "id3"]


def test_kept_pairs_are_the_least_suspicious_with_known_margins(tmp_path: Path) -> None:
    table = ranked(columns([0.5, -2.0, float("nan"), 0.7]), 0.1)
    write_kept(table, 0.5, tmp_path / "kept.jsonl")
    kept = [json.loads(line)["example_id"] for line in (tmp_path / "kept.jsonl").open()]
    assert sorted(kept) == ["id0", "id3"]


def make(folder: Path, *names: str) -> str:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return str(folder)


def test_which_policy(tmp_path: Path) -> None:
    base = make(tmp_path / "base", "config.json")
    whole = make(tmp_path / "whole", "config.json")
    lora = make(tmp_path / "lora", "adapter_config.json", "config.json")
    empty = make(tmp_path / "empty")
    assert find_policy(base, whole, None, None).path == whole
    assert find_policy(base, lora, None, None).adapter
    assert find_policy(base, empty, lora, None).adapter
    assert not find_policy(base, lora, whole, None).adapter
    assert find_policy(base, None, "org/name", None).path == "org/name"
    for options, said in {
        (empty, None, None): "holds no trained model",
        (None, None, None): "holds no trained model",
        (None, base, None): "is base_model itself",
        (None, empty, None): "holds no config.json",
        (None, None, whole): "holds no adapter_config.json",
        (None, whole, lora): "can't be used together",
    }.items():
        with pytest.raises(SeraConfigError, match=said):
            find_policy(base, *options)


def refused(*args: str | Path) -> str:
    result = CliRunner().invoke(sera, ["audit", *map(str, args)])
    assert result.exit_code == 1
    return result.output.strip().splitlines()[-1].removeprefix("Error: ")


def test_bad_input_is_one_sentence(tmp_path: Path, config: MakeConfig) -> None:
    assert "can't be read" in refused(tmp_path / "none.yml")
    (tmp_path / "bad.yml").write_text("a: [")
    assert "can't be read" in refused(tmp_path / "bad.yml")
    (tmp_path / "other.yml").write_text("a: 1")
    assert "is not a config of Axolotl" in refused(tmp_path / "other.yml")
    assert refused(config(rl="kto")).startswith("rl: kto can't be audited")
    path = config()
    assert "holds no trained model" in refused(path)
    base = yaml.safe_load(path.read_text())["base_model"]
    assert "is base_model itself" in refused(path, "--policy", base)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    make(tmp_path / "policy", "config.json")
    said = refused(path, "--policy", tmp_path / "policy", "--out", tmp_path / "full")
    assert "is not an empty folder" in said


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 pairs; the column ``flipped`` says whose labels are swapped."""
    draw, rows = np.random.default_rng(0), []
    for row in assets.pairs(300):
        row["flipped"] = bool(draw.random() < FLIPPED)
        if row["flipped"]:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        rows.append(row)
    return assets.write_jsonl(tmp_path_factory.mktemp("flipped") / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def trained(config: MakeConfig, run_cli: RunCli, flipped: Path) -> Path:
    """A short SeRA run with LoRA on pairs some of which are flipped."""
    path = config(
        drop=("test_datasets",),
        datasets=[dataset_entry(flipped)],
        num_epochs=2,
        learning_rate=5e-3,
        sera={"bootstrap": {"fraction": 0}},
        **LORA,
    )
    run_cli("train", path, "--launcher", "python")
    return path


@pytest.fixture(scope="module")
def audited(trained: Path, run_cli: RunCli) -> tuple[Path, str]:
    """The folder of an audit of that run, and its output."""
    said = run_cli("sera", "audit", trained, "--truth", "flipped", "--keep", "0.8")
    return Path(f"{output_dir(trained)}-audit"), said


@pytest.mark.cli
def test_audit_finds_flipped_labels(audited: tuple[Path, str]) -> None:
    folder, said = audited
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["adapter"] is True
    assert summary["pairs"] == 300
    found = {round(cut["share"], 2): cut for cut in summary["cuts"]}
    assert found[0.1]["precision"] > 0.5 > 2 * FLIPPED
    assert found[0.2]["recall"] > 0.5
    assert "precision" in said
    kept = [json.loads(line) for line in (folder / "kept.jsonl").open()]
    assert len(kept) == 240
    truth = {
        row["example_id"]: row["flipped"]
        for row in map(json.loads, (folder / "ranked.jsonl").open())
    }
    assert np.mean([truth[row["example_id"]] for row in kept]) < FLIPPED / 2
    assert load_dataset(str(folder), split="train").num_rows == 300
    assert load_dataset(str(folder), "kept", split="train").num_rows == 240
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "All 300 pairs, the most suspicious first." in page
    assert (folder / "report.html").stat().st_size < 10_000_000


@pytest.mark.cli
def test_audit_scores_as_the_run_does(audited: tuple[Path, str], trained: Path) -> None:
    """The same pairs, by the same ids, with the same reference log-probs as in the review."""
    review = pq.read_table(output_dir(trained) / "sera/round-02/margins.parquet")
    table = pq.read_table(audited[0] / "ranked.parquet")
    found = {}
    for name, rows in (("run", review), ("audit", table)):
        reference = pa.compute.subtract(rows["policy_chosen_logp"], rows["chosen_log_ratio"])
        found[name] = dict(zip(rows["example_id"].to_pylist(), reference.to_pylist(), strict=True))
    assert found["run"].keys() == found["audit"].keys()
    for example_id, logp in found["run"].items():
        assert found["audit"][example_id] == pytest.approx(logp, abs=1e-4)
    margins = table["margin"].to_numpy()
    assert (np.diff(margins) >= 0).all()
    assert margins.std() > 0.1


@pytest.mark.cli
def test_a_second_audit_takes_another_folder_and_a_model_that_fails_is_one_sentence(
    audited: tuple[Path, str], trained: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    make(tmp_path / "broken", "adapter_config.json")
    said = run_cli("sera", "audit", trained, "--adapter", tmp_path / "broken", expect_failure=True)
    assert f"Error: {tmp_path / 'broken'} can't be loaded: " in said
    assert "Traceback" not in said
    assert Path(f"{output_dir(trained)}-audit-2").is_dir()
