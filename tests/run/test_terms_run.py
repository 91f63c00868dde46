"""Real runs with all terms of the loss: what they log and leave, a resume, two ranks of ZeRO-3."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import TRAIN_PAIRS, MakeConfig, RunCli, dataset_entry, output_dir
from ranks import RANKS, TORCHRUN, zero_config
from snippets import EXTENDING, write_modules

pytestmark = pytest.mark.cli
BOOTSTRAP: dict[str, Any] = {"max_new_tokens": 16, "guard": False}
TERMS: list[Any] = [
    {"refine": {"weight": 0.1, "source": "round", "prompt": "be brave and kind"}},
    {"posterior": {"source": "on_the_fly", "use": "flip"}},
    {"entropy": {"alpha": 0.9}},
    {"offset": {"alpha": 0.1}},
    {"uncertainty": {"weight": 0.2}},
    {"anchor": {"alpha": 0.1}},
    {"explore": {"alpha": 0.1}},
    {"my_terms:half": {"times": 1.5}},
]


def scored(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed).uniform(1, 4, (count, 2)).tolist()
    return [
        row | {"score_chosen": 5 + better, "score_rejected": worse}
        for row, (better, worse) in zip(assets.pairs(count, seed=seed), draw, strict=True)
    ]


def logs(run: Path) -> list[dict[str, Any]]:
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment that finds the term of docs/extending.md."""
    folder = tmp_path_factory.mktemp("own")
    write_modules(EXTENDING, folder)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def every(config: MakeConfig, run_cli: RunCli, own: dict[str, str], tmp_path_factory: Any) -> Path:
    """All terms at once, two reviewed rounds, checkpoints in rounds."""
    folder = tmp_path_factory.mktemp("scored")
    data = assets.write_jsonl(folder / "train.jsonl", scored(TRAIN_PAIRS))
    path = config(
        datasets=[dataset_entry(data)],
        saves_per_epoch=4,
        learning_rate=5e-3,
        sera={"bootstrap": BOOTSTRAP, "loss": TERMS},
    )
    run_cli("train", path, "--launcher", "python", env=own)
    return path


def test_every_term_logs_what_it_does(every: Path) -> None:
    found = logs(output_dir(every))
    rounds = [[entry for entry in found if math.ceil(entry["epoch"]) == n] for n in (1, 2, 3)]
    assert all(rounds)
    for name in ("refine/rho", "posterior/right", "anchor/nll", "half/counts"):
        assert all(math.isfinite(entry[name]) for entry in found), name
    offsets = [math.log(row["score_chosen"] - row["score_rejected"]) for row in scored(TRAIN_PAIRS)]
    first = np.mean([entry["offset/mean"] for entry in rounds[0]])
    assert first == pytest.approx(0.1 * np.mean(offsets), rel=1e-4)
    assert found[0]["posterior/right"] == pytest.approx(0.9, abs=1e-3), "the policy is πref yet"
    for number, own_answers, spread in ((0, False, False), (1, True, False), (2, True, True)):
        explored = [entry["explore/log_ratio"] for entry in rounds[number]]
        assert any(explored) == own_answers, number
        assert any(entry["uncertainty/spread"] for entry in rounds[number]) == spread, number


def test_the_run_and_the_card_name_the_terms(every: Path) -> None:
    stored = json.loads((output_dir(every) / "sera/run.json").read_text())["terms"]
    assert [term["name"] for term in stored] == [name for term in TERMS for name in term]
    assert stored[2] == {"name": "entropy", "settings": {"alpha": 0.9}, "paper": "2411.07595"}
    assert stored[-1] == {"name": "my_terms:half", "settings": {"times": 1.5}, "paper": None}
    card = (output_dir(every) / "README.md").read_text(encoding="utf-8")
    assert card.count("## Loss") == 1
    assert "| `entropy` | `alpha: 0.9` | [2411.07595](https://arxiv.org/abs/2411.07595) |" in card
    assert "| `my_terms:half` | `times: 1.5` |  |" in card


def test_rows_name_who_wrote_the_answers(every: Path) -> None:
    folder = output_dir(every) / "sera/round-02"
    pairs = {
        pair["example_id"]: pair for pair in map(json.loads, (folder / "bootstrapped.jsonl").open())
    }
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    written = [row for row in rows if row["chosen_ids"] is not None]
    assert written
    for row in rows:
        sources = row["chosen_source"], row["rejected_source"]
        pair = pairs[row["example_id"]] if row in written else None
        expected = (pair["chosen_source"], pair["rejected_source"]) if pair else (None, None)
        assert sources == expected


def test_a_resumed_run_ends_with_the_same_weights(
    every: Path, run_cli: RunCli, own: dict[str, str], tmp_path: Path
) -> None:
    keys = yaml.safe_load(every.read_text())
    whole, out = output_dir(every), tmp_path / "out"
    steps = sorted(int(path.name.split("-")[1]) for path in whole.glob("checkpoint-*"))
    epochs = [
        json.loads((whole / f"checkpoint-{step}/trainer_state.json").read_text())["epoch"]
        for step in steps
    ]
    within = next(step for step, epoch in zip(steps, epochs, strict=True) if 2 < epoch < 3)
    states = [
        json.loads((whole / f"checkpoint-{step}/sera_terms.json").read_text())["terms"][1]
        for step in (within, steps[-1])
    ]
    assert states[0] != states[1]
    shutil.copytree(whole, out)
    for step in steps:
        if step > within:
            shutil.rmtree(out / f"checkpoint-{step}")
    (out / "model.safetensors").unlink()
    checkpoint = str(out / f"checkpoint-{within}")
    path = tmp_path / "config.yml"
    path.write_text(
        yaml.safe_dump(keys | {"output_dir": str(out), "resume_from_checkpoint": checkpoint})
    )
    run_cli("train", path, "--launcher", "python", env=own)
    for name in ("model.safetensors", f"checkpoint-{steps[-1]}/sera_terms.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_zero3_finds_what_one_process_finds(
    config: MakeConfig, run_cli: RunCli, tmp_path: Path
) -> None:
    data = assets.write_jsonl(tmp_path / "train.jsonl", scored(32, seed=3))
    (tmp_path / "doubts.py").write_text(
        "import numpy as np\ndef waves(given):\n    return np.sin(np.arange(len(given.ids)))\n"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    common: dict[str, Any] = {
        "datasets": [dataset_entry(data)],
        "num_epochs": 2,
        "learning_rate": 5e-3,
        "sera": {
            "bootstrap": BOOTSTRAP | {"temperature": 0},
            "selection": {"signals": ["doubts:waves"]},
            "loss": [
                {"entropy": {"alpha": 0.9}},
                {"offset": {"function": "identity", "alpha": 0.1}},
                {"uncertainty": {"spread": "signals", "signals": ["margin", "waves"]}},
                {"posterior": {"signal": "waves"}},
                {"anchor": {"alpha": 0.1}},
                {"explore": {"alpha": 0.1}},
            ],
        },
    }
    alone = config(**common)
    said = run_cli("train", alone, "--launcher", "python", env=env)
    assert "Round 2: by the signal waves, " in said
    both = config(
        **common,
        plugins=["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
        micro_batch_size=2,
        deepspeed=zero_config(tmp_path, 3),
    )
    path = os.pathsep.join([RANKS["PYTHONPATH"], str(tmp_path)])
    run_cli("train", both, *TORCHRUN, env=RANKS | {"PYTHONPATH": path}, timeout=300)
    found, expected = logs(output_dir(both)), logs(output_dir(alone))
    assert len(found) == len(expected) > 6
    names = ("loss", "posterior/right", "uncertainty/spread", "offset/mean", "explore/log_ratio",
             "anchor/nll", "rewards/margins")  # fmt: skip
    for one, other in zip(found, expected, strict=True):
        for name in names:
            assert one[name] == pytest.approx(other[name], abs=1e-3), name
    assert any(entry["uncertainty/spread"] for entry in expected)
    assert min(entry["posterior/right"] for entry in expected) < 1
