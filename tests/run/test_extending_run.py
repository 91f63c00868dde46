"""The parts of docs/extending.md in a run of the real command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import MakeConfig, RunCli, output_dir
from pages import Outline
from snippets import EXTENDING, sera_blocks, write_modules
from transformers import AutoTokenizer

pytestmark = pytest.mark.cli
PHRASES = {"apple river stone", "green cloud", "dark"}


def test_a_signal_a_rule_a_judge_an_engine_and_a_term_of_ones_own(
    config: MakeConfig, run_cli: RunCli, llama: Path, tmp_path: Path
) -> None:
    assert len(write_modules(EXTENDING, tmp_path)) == 5
    selection: dict[str, object] = {}
    bootstrap: dict[str, object] = {"fraction": 0.3, "max_new_tokens": 16, "guard": False}
    for block in sera_blocks(EXTENDING):
        selection |= block.get("selection", {})
        bootstrap |= block.get("bootstrap", {})
    (loss,) = (block["loss"] for block in sera_blocks(EXTENDING) if "loss" in block)
    block = {"selection": selection, "bootstrap": bootstrap, "loss": loss}
    path = config(num_epochs=2, sera=block)
    run_cli("train", path, "--launcher", "python", env={"PYTHONPATH": str(tmp_path)})

    sera = output_dir(path) / "sera"
    settings = json.loads((sera / "run.json").read_text())["sera"]
    assert settings["selection"]["signals"] == ["length", "my_signal:surprise"]
    log = json.loads((sera / "log.json").read_text())
    counts = [entry["half/counts"] for entry in log if "loss" in entry]
    assert 0.5 < np.mean(counts) < 1
    table = pq.read_table(sera / "round-02/margins.parquet").to_pandas()
    half = table.signal_surprise <= table.signal_surprise.median()
    assert (table.signal_surprise > 0).all()
    assert table.signal_length.nunique() > 1
    assert table.kept.sum() == round(0.4 * len(table))
    assert set(table.example_id[table.kept]) == set(
        table[half].nlargest(int(table.kept.sum()), "ensembled_margin").example_id
    )
    assert np.isnan(table.score[~half]).all()

    tokenizer = AutoTokenizer.from_pretrained(llama)
    answers = pq.read_table(sera / "round-02/candidates.parquet").to_pandas()
    texts = answers.token_ids.map(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
    sampled = answers.source == "policy"
    assert set(texts[sampled]) == PHRASES
    assert (answers.judge_score == -texts.str.len()).all()
    pairs = [json.loads(line) for line in (sera / "round-02/bootstrapped.jsonl").open()]
    assert pairs
    for pair in pairs:
        lengths = texts[answers.example_id == pair["example_id"]].str.len()
        assert (pair["reward_chosen"], pair["reward_rejected"]) == (-lengths.min(), -lengths.max())

    run_cli("sera", "report", output_dir(path))
    page = Outline((sera / "report.html").read_text(encoding="utf-8"))
    said = " ".join(page.by_id("answers").text.split())
    kept, count = int(table.kept.sum()), len(table)
    assert f"round 2 kept {kept} of {count} offline pairs, dropped {count - kept}, added" in said
    assert re.search(r"since round 1: evaluation accuracy was [\d.]+% and [\d.]+% and loss", said)
    suspect = int((table.ensembled_margin < 0).sum())
    assert f"{suspect} of {count} labels" in said
    signals = {row["signal"]: row["unit"] for row in page.by_id("grid-2").table()}
    assert signals["signal_length"] == "tokens"
    assert signals["signal_surprise"] == "its own"
