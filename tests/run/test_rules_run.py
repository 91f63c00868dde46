"""Every rule of selection trains through the real command line on real preference data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import MakeConfig, RunCli, output_dir
from datasets import load_dataset
from ranks import LORA

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpaca_eval_pairs.jsonl"
pytestmark = [
    pytest.mark.cli,
    pytest.mark.skipif(not DATA.is_file(), reason=f"the preference data is not at {DATA}"),
]
JUDGED = {"chosen": "judge_chosen", "rejected": "judge_rejected"}
RULES: dict[str, dict[str, Any]] = {
    "bottom": {"rule": "bottom", "keep": 0.25},
    "band": {"rule": "band", "band": [20, 70]},
    "random": {"rule": "random"},
    "threshold": {"rule": "threshold", "threshold": 0.0, "keep": 1.0},
    "lossdiff": {"rule": "lossdiff_irm"},
    "lossdiff-lora": {"rule": "lossdiff_irm"},
    "external": {"rule": "external", "external": {**JUDGED, "mode": "only"}},
    "fused": {"rule": "external", "external": JUDGED},
    "own": {"rule": "users_rule:shortest"},
    "flip": {"on_negative": "flip", "negative_reviews": 1, "negative_deviations": 0, "keep": 1.0},
}
OWN = """
import numpy as np


def shortest(evidence):
    return np.array([-int(i[:8], 16) for i in evidence.ids], dtype=float)


def brief(prompts, completions, **rest):
    return [None if len(text) % 10 == 0 else -float(len(text)) for text in completions]
"""


@pytest.fixture(scope="module")
def measured() -> dict[int, pd.Series]:
    """Margins of the first review in a full fine-tune by the size of the round that follows."""
    return {}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [
        row["chosen"]["content"] for row in load_dataset("json", data_files=str(DATA))["train"]
    ]
    return assets.save_model(tmp_path_factory.mktemp("rules") / "model", "llama", texts)


def _with_wrong_labels(path: Path) -> Path:
    """The data with the answers of every third pair swapped, so that some margins are negative."""
    rows = [json.loads(line) for line in DATA.open(encoding="utf-8")]
    for row in rows[::3]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return assets.write_jsonl(path, rows)


def run(
    selection: dict[str, Any],
    bootstrap: dict[str, Any],
    base: Path,
    config: MakeConfig,
    run_cli: RunCli,
    folder: Path,
    **more: Any,
) -> tuple[Path, str]:
    (folder / "users_rule.py").write_text(OWN)
    swapped = selection.get("on_negative") == "flip"
    entry = {
        "path": str(_with_wrong_labels(folder / "wrong.jsonl") if swapped else DATA),
        "ds_type": "json",
        "split": "train[:80]",
        "type": "chat_template.default",
        "field_messages": "conversation",
    }
    path = config(
        drop=("test_datasets", "evals_per_epoch", "saves_per_epoch"),
        base_model=str(base),
        datasets=[entry],
        sequence_len=512,
        val_set_size=0.2,
        num_epochs=2,
        learning_rate=1e-5 if swapped else 1e-3,
        eval_strategy="no",
        save_strategy="no",
        sera={"selection": selection, "bootstrap": bootstrap},
        **more,
    )
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    printed = run_cli("train", path, "--launcher", "python", env={"PYTHONPATH": paths})
    return output_dir(path) / "sera", printed


@pytest.mark.parametrize("name", RULES)
def test_a_rule_trains_on_real_data(name, base, config, run_cli, tmp_path, measured):
    more = LORA if name.endswith("lora") else {}
    sera, printed = run(RULES[name], {"fraction": 0.0}, base, config, run_cli, tmp_path, **more)
    table = pq.read_table(sera / "round-02" / "margins.parquet").to_pandas()
    rows = pq.read_table(sera / "round-02" / "rows.parquet").to_pandas()
    summary = json.loads((sera / "round-02" / "summary.json").read_text())
    count = len(table)
    assert len(rows) == summary["kept"] + summary["filled"]
    assert summary["kept"] == table.kept.sum()
    assert summary["filled"] == rows.filled.sum()
    assert summary["filled_negative"] == 0
    assert set(table.example_id[table.kept]) == set(rows.example_id)
    kept, left = table[table.kept], table[~table.kept]
    margin = table.ensembled_margin
    if name not in ("flip", "lossdiff-lora"):
        # With equal schedules the first round is the same; an auxiliary policy leaves nothing
        # behind in it.
        found = table.set_index("example_id").margin
        pd.testing.assert_series_equal(found, measured.setdefault(len(rows), found))
    if name == "bottom":
        assert kept.ensembled_margin.max() <= left.ensembled_margin.min()
        assert len(kept) == int(0.25 * count + 0.5)
    elif name == "band":
        assert len(kept) == pytest.approx(0.5 * count, abs=1)
        assert kept.ensembled_margin.min() > margin.min()
        assert kept.ensembled_margin.max() < margin.max()
    elif name == "random":
        assert abs(np.corrcoef(table.score, margin)[0, 1]) < 0.4
    elif name == "threshold":
        assert (kept.ensembled_margin > 0).all()
        assert (left.ensembled_margin <= 0).all()
        assert 0 < len(kept) < count == len(rows)
        assert set(rows.example_id[rows.filled]) <= set(kept.example_id)
        assert summary["eligible"] == len(kept)
    elif name.startswith("lossdiff"):
        assert "LossDiff: the auxiliary policy is aligned on 16 evaluation pairs" in printed
        assert kept.score.min() >= left.score.max()
        # Of both criteria, so the middle of the margins alone is another set.
        middle = (margin.rank() - count / 2).abs().nsmallest(len(kept)).index
        assert set(kept.index) != set(middle)
    elif name in ("external", "fused"):
        judged = {json.dumps(r["chosen"]): r for r in map(json.loads, DATA.open())}
        assert judged
        assert kept.score.min() >= left.score.max()
        together = np.corrcoef(table.score, margin)[0, 1]
        assert together < 0.5 if name == "external" else together > 0.5
    elif name == "own":
        first = table.example_id.str[:8].map(lambda text: int(text, 16))
        assert first[table.kept].max() < first[~table.kept].min()
    elif name == "flip":
        assert table.flipped.any()
        assert (margin[table.flipped] < 0).all()
        assert set(rows.example_id[rows.flipped]) == set(table.example_id[table.flipped])
        assert summary["flipped"] == table.flipped.sum()


def test_a_judge_of_the_users_own_ranks_the_answers(base, config, run_cli, tmp_path):
    bootstrap = {
        "judge": "users_rule:brief",
        "fraction": 0.2,
        "prompts": 0.3,
        "num_candidates": 2,
        "max_new_tokens": 12,
    }
    sera, _ = run({}, bootstrap, base, config, run_cli, tmp_path)
    answers = pq.read_table(sera / "round-02" / "candidates.parquet").to_pandas()
    assert answers.judge_score.notna().all()
    assert (answers.reward == answers.judge_score).all()
    pairs = [json.loads(line) for line in (sera / "round-02" / "bootstrapped.jsonl").open()]
    assert pairs
    for pair in pairs:
        pool = answers[answers.example_id == pair["example_id"]]
        assert pair["reward_chosen"] == pool.reward[pool.finished].max()
        assert pair["reward_rejected"] == pool.reward.min()
