"""Real runs that weigh pairs by a signal from outside, from round 1 on: gate, resume, plain DPO."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import MakeConfig, RunCli, dataset_entry, output_dir
from pages import Outline
from safetensors.numpy import load_file

from sera_plugin.review.calibration import Calibration, weights

pytestmark = pytest.mark.cli

PAIRS = 128

OUTSIDE: dict[str, Any] = {
    "preset": "contrast",
    "selection": {"by": "external", "external": {"margin": "seen"}, "sources": "crowd"},
}


def judged(error: float) -> list[dict[str, Any]]:
    """Pairs with what a judge says of them, and who labelled them; crowd b is wrong more often."""
    draw = np.random.default_rng(9)
    size = np.abs(draw.normal(size=PAIRS))
    crowd = ["a", "b"] * (PAIRS // 2)
    wrong = draw.random(PAIRS) < [error * (2 * (name == "b")) for name in crowd]
    agrees = draw.random(PAIRS) < 1 / (1 + np.exp(-3 * size))
    seen = np.where(agrees != wrong, size, -size).tolist()
    return [
        row | {"seen": score, "crowd": name}
        for row, score, name in zip(assets.pairs(PAIRS), seen, crowd, strict=True)
    ]


def test_trusted_pairs_say_how_strong_the_signal_is(
    config: MakeConfig, run_cli: RunCli, tmp_path: Path
) -> None:
    rows = judged(0.1)
    for number, row in enumerate(rows):
        row["checked"] = number < 40 or None
    data = tmp_path / "train.jsonl"
    keys = {**OUTSIDE["selection"], "trusted": "checked"}
    path = config(
        datasets=[dataset_entry(assets.write_jsonl(data, rows))],
        num_epochs=1,
        sera={"preset": "contrast", "selection": keys},
    )
    said = run_cli("train", path, "--launcher", "python")
    folder = output_dir(path) / "sera/round-01"
    table = pq.read_table(folder / "margins.parquet").to_pydict()
    prompts = pq.read_table(output_dir(path) / "sera/pairs.parquet").to_pydict()
    trusted = {row["messages"][0]["content"] for row in rows if row["checked"]}
    asked = dict(zip(prompts["example_id"], prompts["prompt"], strict=True))
    mask = np.array([any(p in asked[i] for p in trusted) for i in table["example_id"]])
    assert mask.sum() == 40
    scores, right = np.array(table["signal_external"]), np.array(table["right"])
    fit = Calibration.fit(scores, mask)
    assert fit is not None
    assert right == pytest.approx(np.where(mask, 1, fit.posterior(scores)))
    assert table["weight"] == pytest.approx(weights(right))
    assert "and 40 trusted ones say how much it knows; wrong labels: " in said
    assert json.loads((folder / "summary.json").read_text())["gate_open"] == 1


@pytest.fixture(scope="module")
def weighed(config: MakeConfig, run_cli: RunCli, tmp_path_factory: Any) -> tuple[Path, str]:
    """A run whose judge finds wrong labels, and what it said."""
    data = tmp_path_factory.mktemp("judged") / "train.jsonl"
    path = config(
        datasets=[dataset_entry(assets.write_jsonl(data, judged(0.25)))],
        num_epochs=2,
        saves_per_epoch=4,
        save_total_limit=20,
        learning_rate=5e-3,
        sera=OUTSIDE,
    )
    return path, run_cli("train", path, "--launcher", "python")


def test_every_round_weighs_all_pairs(weighed: tuple[Path, str]) -> None:
    path, said = weighed
    rounds = [output_dir(path) / f"sera/round-0{n}" for n in (1, 2)]
    for number, folder in enumerate(rounds, start=1):
        table = pq.read_table(folder / "margins.parquet")
        scores = table["signal_external"].to_numpy()
        calibration = Calibration.fit(scores)
        assert calibration is not None
        right = calibration.posterior(scores)
        assert table["right"].to_numpy() == pytest.approx(right)
        assert table["weight"].to_numpy() == pytest.approx(weights(right))
        assert table["weight"].to_numpy().mean() == pytest.approx(1)
        assert table["weight"].to_numpy().min() == 0
        assert all(table["kept"].to_pylist())
        rows = pq.read_table(folder / "rows.parquet")["example_id"].to_pylist()
        assert sorted(rows) == sorted(table["example_id"].to_pylist())
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["gate_open"] == 1
        assert 0 < summary["label_errors_low"] < summary["label_errors"]
        assert summary["label_errors_by"]["b"][0] > summary["label_errors_by"]["a"][0]
        assert f"Round {number}, selection: by external: it gives the labels " in said
        assert "and it finds wrong ones; wrong labels: " in summary["selection"]
        doubted = f"Round {number}: the gate of sera.selection opened although" in said
        assert doubted == (summary["agreement"] < 0.54)
        assert ("accuracy_train" in summary) == (number > 1)
    first = pq.read_table(rounds[0] / "margins.parquet")
    assert not np.any(first["margin"].to_numpy())
    assert set(first["measured_in"].to_pylist()) == {0}


def test_the_loss_is_weighed(weighed: tuple[Path, str]) -> None:
    """At the first update all margins are 0, so its loss is log 2 times the weights' mean."""
    out = output_dir(weighed[0])
    history = json.loads((out / "sera/log.json").read_text())
    first = next(entry for entry in history if "loss" in entry)
    table = pq.read_table(out / "sera/round-01/margins.parquet").to_pylist()
    weight = {row["example_id"]: row["weight"] for row in table}
    right = {row["example_id"]: row["right"] for row in table}
    rows = pq.read_table(out / "sera/round-01/rows.parquet")["example_id"].to_pylist()[:8]
    mean = np.mean([weight[i] for i in rows])
    assert abs(mean - 1) > 0.01, "an even batch tests nothing"
    assert first["loss"] == pytest.approx(np.log(2) * mean, rel=1e-3)
    assert first["posterior/right"] == pytest.approx(np.mean([right[i] for i in rows]), rel=1e-4)


def test_report_and_export_of_a_run_that_is_reviewed_from_round_1(
    weighed: tuple[Path, str], run_cli: RunCli, tmp_path: Path
) -> None:
    out = output_dir(weighed[0])
    run_cli("sera", "report", out, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    table = pq.read_table(out / "sera/round-02/margins.parquet").to_pydict()
    doubted = sum(right < 0.5 for right in table["right"])
    assert 0 < doubted < PAIRS / 2
    said = " ".join(Outline(page).elements[0].text.split())
    assert "1 (all pairs)" not in said
    assert (
        f"{doubted} of {PAIRS} labels ({doubted / PAIRS:.1%}): before round 2 selection took them "
        "to be wrong rather than right."
    ) in said
    assert "All rounds were reviewed, so none of this run is beside them: evaluation" in said
    for number in (1, 2):
        assert f"kept in round {number}" in page
        folder = tmp_path / f"export-{number}"
        run_cli("sera", "export", out, "--round", str(number), "--format", "trl", "--out", folder)
        rows = pq.read_table(folder / "train.parquet").to_pylist()
        review = pq.read_table(out / f"sera/round-0{number}/margins.parquet").to_pylist()
        found = {row["example_id"]: (row["right"], row["weight"]) for row in rows}
        assert found == {row["example_id"]: (row["right"], row["weight"]) for row in review}
        assert (
            "weighed the loss of its pairs by the column `weight`"
            in (folder / "README.md").read_text()
        )


def test_a_run_resumed_in_round_1_ends_with_the_same_weights(
    weighed: tuple[Path, str], run_cli: RunCli, tmp_path: Path
) -> None:
    whole, out = output_dir(weighed[0]), tmp_path / "out"
    steps = sorted(int(path.name.split("-")[1]) for path in whole.glob("checkpoint-*"))
    shutil.copytree(whole, out)
    for step in steps[1:]:
        shutil.rmtree(out / f"checkpoint-{step}")
    state = json.loads((out / f"checkpoint-{steps[0]}/trainer_state.json").read_text())
    assert 0 < state["epoch"] < 1
    (out / "model.safetensors").unlink()
    keys = yaml.safe_load(weighed[0].read_text())
    checkpoint = str(out / f"checkpoint-{steps[0]}")
    path = tmp_path / "config.yml"
    path.write_text(
        yaml.safe_dump(keys | {"output_dir": str(out), "resume_from_checkpoint": checkpoint})
    )
    run_cli("train", path, "--launcher", "python")
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_closed_gate_is_plain_dpo(config: MakeConfig, run_cli: RunCli) -> None:
    """A random model knows no good answers, so the contrast of prompts must change nothing."""
    gated = config(num_epochs=2, sera={"preset": "contrast"})
    said = run_cli("train", gated, "--launcher", "python")
    assert "the gate is closed, all pairs stay with weight 1" in said
    assert "Estimate for each reviewed round: 0 tokens scored, 0 sampled" in said
    takes = re.search(r"contrast of the pairs takes before round 1: ([\d,]+) tokens", said)
    planned = run_cli("sera", "plan", gated, "--json")
    lengths = json.loads(planned[planned.index("\n{\n") :])["lengths"]
    assert takes is not None
    assert int(takes[1].replace(",", "")) == pytest.approx(lengths["contrast"], abs=1)
    assert 2 * lengths["total"] < lengths["contrast"] < 4 * lengths["total"]
    table = pq.read_table(output_dir(gated) / "sera/round-02/margins.parquet")
    assert np.isfinite(table["signal_contrast"].to_numpy()).all()
    assert set(table["weight"].to_pylist()) == {1.0}
    reviewless = config(num_epochs=2, sera={"selection": False, "bootstrap": False})
    run_cli("train", reviewless, "--launcher", "python")
    one, other = (load_file(output_dir(path) / "model.safetensors") for path in (gated, reviewless))
    for name, values in one.items():
        assert values == pytest.approx(other[name], abs=1e-5), name
