"""Real runs without evaluation pairs: held-out pairs are scored and never trained on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from command_line import TRAIN_PAIRS, MakeConfig, RunCli, output_dir
from ranks import TORCHRUN

from sera_plugin.commands.cli import sera

pytestmark = pytest.mark.cli
HERE = Path(__file__).parent
SHIM = {"PYTHONPATH": f"{HERE.parent / 'support'}{os.pathsep}{HERE.parents[1]}"}
TRAIN = ("--launcher", "python")
COUNT = 20
LEFT = TRAIN_PAIRS - COUNT
KEYS: dict[str, Any] = {
    "plugins": ["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
    "drop": ("test_datasets", "evals_per_epoch"),
    "learning_rate": 5e-3,
    "saves_per_epoch": 2,
    "sera": {
        "selection": {"keep": 0.5},
        "bootstrap": {
            "fraction": 0.2,
            "prompts": 0.3,
            "max_new_tokens": 8,
            # Far limits: what is looked at here is which pairs a round is made of.
            "guard": {
                "held_out": COUNT,
                "max_drift": 1000,
                "max_spread": 1000,
                "max_length_correlation": 1,
                "min_agreement": 0,
                "min_accuracy": 0,
            },
        },
    },
}


def ids(run: Path, file: str) -> list[str]:
    return pq.read_table(run / "sera" / file)["example_id"].to_pylist()


def summary(run: Path, number: int) -> dict[str, Any]:
    return json.loads((run / f"sera/round-{number:02d}/summary.json").read_text())


@pytest.fixture(scope="module")
def trained(config: MakeConfig, run_cli: RunCli) -> tuple[Path, str]:
    path = config(**KEYS)
    return path, run_cli("train", path, *TRAIN, env=SHIM)


def test_no_round_has_a_held_out_pair_and_shares_are_of_the_others(
    trained: tuple[Path, str],
) -> None:
    run = output_dir(trained[0])
    out, left = ids(run, "held_out.parquet"), ids(run, "pairs.parquet")
    assert (len(out), len(left)) == (COUNT, LEFT)
    assert not set(out) & set(left)
    settings = json.loads((run / "sera/run.json").read_text())
    assert (settings["pairs"], settings["held_out"]) == (LEFT, COUNT)
    planned = [(entry["kept"], entry["bootstrapped"]) for entry in settings["rounds"]]
    assert planned == [(LEFT, 0), (22, 9), (22, 9)]
    for number in (2, 3):
        for file in ("margins", "rows", "candidates"):
            assert not set(ids(run, f"round-{number:02d}/{file}.parquet")) & set(out)
    state = json.loads(max(run.glob("checkpoint-*/trainer_state.json")).read_text())
    assert not any("eval_loss" in entry for entry in state["log_history"])


def test_every_review_scores_them_for_the_guard(trained: tuple[Path, str]) -> None:
    path, said = trained
    for number in (2, 3):
        found = summary(output_dir(path), number)
        right = found["accuracy_held_out"] * COUNT
        assert right == pytest.approx(round(right))
        assert found["guard_accuracy"] == pytest.approx(found["accuracy_held_out"], abs=0.05)
        assert found["set_aside_held_out"] == 0
    log = " ".join(said.split())
    assert f"{COUNT} of {TRAIN_PAIRS} training pairs are held out for the guard" in log


def test_a_killed_run_goes_on_with_the_same_pairs(
    trained: tuple[Path, str], run_cli: RunCli, tmp_path: Path
) -> None:
    keys = yaml.safe_load(trained[0].read_text())
    keys["output_dir"] = str(tmp_path / "out")
    again = tmp_path / "config.yml"
    again.write_text(yaml.safe_dump(keys))
    # 6 updates in round 1, 4 in each later one: killed within round 3.
    run_cli("train", again, *TRAIN, env=SHIM | {"DIE_AT_STEP": "11"}, expect_failure=True)
    run_cli("train", again, *TRAIN, "--auto-resume-from-checkpoints", env=SHIM)
    here, there = output_dir(trained[0]), tmp_path / "out"
    for name in ("held_out.parquet", "round-03/rows.parquet", "round-03/margins.parquet"):
        assert (there / "sera" / name).read_bytes() == (here / "sera" / name).read_bytes()
    assert summary(there, 3)["accuracy_held_out"] == summary(here, 3)["accuracy_held_out"]
    keys["sera"]["bootstrap"]["guard"]["held_out"] = 0
    again.write_text(yaml.safe_dump(keys))
    said = run_cli(
        "train", again, *TRAIN, "--auto-resume-from-checkpoints", env=SHIM, expect_failure=True
    )
    assert "sera.bootstrap.guard.held_out was 20 and is 0" in " ".join(said.split())


def test_two_ranks_hold_out_the_same_pairs(
    trained: tuple[Path, str], config: MakeConfig, run_cli: RunCli
) -> None:
    path = config(**(KEYS | {"micro_batch_size": 2, "num_epochs": 2}))
    run_cli("train", path, *TORCHRUN, env=SHIM)
    one, two = output_dir(trained[0]), output_dir(path)
    assert ids(two, "held_out.parquet") == ids(one, "held_out.parquet")
    assert ids(two, "pairs.parquet") == ids(one, "pairs.parquet")
    found = summary(two, 2)["accuracy_held_out"]
    assert found == pytest.approx(summary(one, 2)["accuracy_held_out"], abs=1.5 / COUNT)


def test_commands_show_them_and_export_leaves_them_out(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    path, _ = trained
    run = output_dir(path)

    def said(*args: str) -> str:
        result = CliRunner().invoke(sera, args)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    said("plan", str(path), "--out", str(tmp_path / "plan.json"))
    lengths = json.loads((tmp_path / "plan.json").read_text())["lengths"]
    assert (lengths["pairs"], lengths["held_out"]) == (LEFT, COUNT)
    out = set(ids(run, "held_out.parquet"))
    for number in (1, 2):
        folder = tmp_path / f"round-{number}"
        said("export", str(run), "--round", str(number), "--out", str(folder))
        lines = (folder / "train.jsonl").read_text().splitlines()
        assert lines
        assert not {json.loads(line)["example_id"] for line in lines} & out
        card = (folder / "README.md").read_text()
        assert f"| training pairs held out, none of them here | {COUNT} |" in card
    said("report", str(run), "--out", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "pairs held out" in page
    assert f"on {COUNT} held-out training pairs" in page
