"""Log-probs recorded by training steps: merging by hand, files, and whole runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from command_line import MakeConfig, RunCli, output_dir
from datasets import Dataset
from ranks import RANKS, TORCHRUN
from slow_reference import plain_loop
from trl.trainer.dpo_trainer import DataCollatorForPreference

from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import RoundRow
from sera_plugin.host.models import KeyedCollator, logps_of_batch
from sera_plugin.scoring.recording import FILE, Notes, Recorded, Recorder, merge

IDS = ("a", "b", "c", "d")
NOTHING = np.zeros(4, dtype=np.int64)
PAIRS = OfflinePairs(
    Dataset.from_dict({}), IDS, {i: n for n, i in enumerate(IDS)}, NOTHING, NOTHING, NOTHING
)


def start() -> Recorded:
    return Recorded.start(PairLogps(IDS, np.arange(4.0), -np.arange(4.0)))


def notes(*rows: tuple[int, int, int, float]) -> Notes:
    """(row, update, round, chosen log-prob); the rejected one is its double."""
    table = np.array(rows, dtype=float).reshape(-1, 4)
    whole = table[:, :3].astype(np.int64)
    return Notes(whole[:, 0], whole[:, 1], whole[:, 2], table[:, 3:] * [1.0, 2.0])


def test_the_latest_update_counts_and_then_the_lowest_rank() -> None:
    found = merge(
        start(),
        [
            notes((0, 5, 1, -10), (2, 7, 2, -11)),
            notes((0, 6, 1, -20), (2, 7, 2, -21)),
            notes(),
        ],
    )
    assert found.policy.chosen.tolist() == [-20, 1, -11, 3]
    assert found.policy.rejected.tolist() == [-40, -1, -22, -3]
    assert found.measured_in.tolist() == [1, 0, 2, 0]


def test_a_recorder_follows_keys_and_passes_over_new_pairs() -> None:
    recorder = Recorder(PAIRS, start())
    keys = ["c/offline", "a/policy", "b/offline/again-0", "c/offline/2"]
    recorder.begin(1, [RoundRow(key, key[0]) for key in keys])
    values = np.array([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0], [-7.0, -8.0]])
    recorder.note(keys[:3], values[:3], 4)
    recorder.note(keys[3:], values[3:], 5)
    found = recorder.merged()
    assert found.policy.chosen.tolist() == [0, -5, -7, 3]
    assert found.policy.rejected.tolist() == [0, -6, -8, -3]
    assert found.measured_in.tolist() == [0, 1, 1, 0]
    # What is merged stays, whatever comes later.
    recorder.begin(2, [RoundRow("a/offline", "a", flipped=True)])
    recorder.note(["a/offline"], np.array([[-9.0, -9.5]]), 6)
    later = recorder.merged()
    # The pair was trained on with its answers in each other's place.
    assert later.policy.chosen.tolist() == [-9.5, -5, -7, 3]
    assert later.policy.rejected.tolist() == [-9, -6, -8, -3]
    assert later.measured_in.tolist() == [2, 1, 1, 0]


def test_what_is_known_is_saved_and_read_by_id(tmp_path: Path) -> None:
    known = merge(start(), [notes((1, 3, 2, -0.1))])
    known.save(tmp_path / "checkpoint-3")
    found = Recorded.load(tmp_path / "checkpoint-3", ("d", "b", "a", "c"))
    assert found.policy.ids == ("d", "b", "a", "c")
    assert found.policy.chosen.tolist() == [3, -0.1, 0, 2]
    assert found.policy.rejected.tolist() == [-3, -0.2, 0, -2]
    assert found.measured_in.tolist() == [0, 2, 0, 0]
    assert found.measured_in.dtype == known.measured_in.dtype
    with pytest.raises(RuntimeError, match=r"can't resume: .*checkpoint-4/.* is missing"):
        Recorded.load(tmp_path / "checkpoint-4", IDS)


def test_logps_of_a_training_batch_equal_a_plain_loop() -> None:
    model = assets.small_llama(50).eval()
    draw = np.random.default_rng(1)
    rows = [
        {
            "prompt_ids": draw.integers(1, 50, prompt).tolist(),
            "chosen_ids": draw.integers(1, 50, chosen).tolist(),
            "rejected_ids": draw.integers(1, 50, rejected).tolist(),
            "sera_id": f"{number}/offline",
        }
        for number, (prompt, chosen, rejected) in enumerate([(4, 3, 8), (9, 5, 1), (2, 1, 6)])
    ]
    batch = KeyedCollator(DataCollatorForPreference(pad_token_id=0, max_length=12))(rows)
    assert batch.pop("sera_id") == ["0/offline", "1/offline", "2/offline"]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    logits = model(input_ids=ids, attention_mask=mask).logits
    found = logps_of_batch(logits, batch)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    with torch.no_grad():
        expected = [
            plain_loop(model, [(row["prompt_ids"], row[side]) for row in rows], 12)
            for side in ("chosen_ids", "rejected_ids")
        ]
    np.testing.assert_allclose(found.numpy(), np.stack(expected, axis=1), atol=1e-5, rtol=0)


# --- whole runs ---------------------------------------------------------------------------------

SHIM = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
PLUGINS = ["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"]


def keys_of(source: str, **changes: Any) -> dict[str, Any]:
    return {
        "plugins": PLUGINS,
        "saves_per_epoch": 4,
        "learning_rate": 2e-3,
        "sera": {"selection": {"source": source}, "bootstrap": {"max_new_tokens": 16}},
    } | changes


class Undisturbed:
    def __init__(self, config: MakeConfig, run_cli: RunCli) -> None:
        path = config(**keys_of("training"))
        env = SHIM | {"RESCORE_TOO": "1"}
        self.log = run_cli("train", path, "--launcher", "python", env=env)
        self.out = output_dir(path)


@pytest.fixture(scope="module")
def undisturbed(config: MakeConfig, run_cli: RunCli) -> Undisturbed:
    return Undisturbed(config, run_cli)


def margins(run: Path, number: int) -> pd.DataFrame:
    table = pq.read_table(run / f"sera/round-{number:02d}/margins.parquet").to_pandas()
    return table.set_index("example_id").sort_index()


@pytest.mark.cli
def test_margins_come_without_a_pass_and_rank_like_rescored_ones(undisturbed: Undisturbed) -> None:
    assert "scoring offline pairs" not in undisturbed.log
    found = [float(rho) for rho in re.findall(r"RESCORED: Spearman (\S+)", undisturbed.log)]
    print(f"Spearman of recorded and rescored margins in rounds 2 and 3: {found}")
    assert len(found) == 2
    assert all(0.0 < rho < 0.999 for rho in found)


@pytest.mark.cli
def test_margins_are_those_of_the_step_that_trained_the_pair(undisturbed: Undisturbed) -> None:
    run = undisturbed.out
    first = margins(run, 2)
    # Two micro-batches of four pairs are trained on before the first update: πθ = πref.
    untouched = (first[["chosen_log_ratio", "rejected_log_ratio"]].abs() < 1e-4).all(axis=1)
    assert untouched.sum() == 8
    second = margins(run, 3)
    keys = pq.read_table(run / "sera/round-02/rows.parquet")["key"].to_pylist()
    trained = {key.split("/")[0] for key in keys if "/offline" in key}
    assert 0 < len(trained) < 64
    expected = [2 if example_id in trained else 1 for example_id in second.index]
    assert second["measured_in"].tolist() == expected
    aged = second["measured_in"] == 1
    assert (second["margin"] == first["margin"])[aged].all()
    assert (second["margin"] != first["margin"])[~aged].all()
    summary = json.loads((run / "sera/round-03/summary.json").read_text())
    assert summary["aged_margins"] == aged.sum()


@pytest.mark.cli
@pytest.mark.parametrize("step", [13, *(pytest.param(n, marks=pytest.mark.crash) for n in (5, 16))])
def test_a_killed_run_records_as_if_nothing_had_happened(
    undisturbed: Undisturbed, config: MakeConfig, run_cli: RunCli, step: int
) -> None:
    path = config(**keys_of("training"))
    train = ("train", path, "--launcher", "python")
    run_cli(*train, env=SHIM | {"DIE_AT_STEP": str(step)}, expect_failure=True)
    run = output_dir(path)
    assert (run / f"checkpoint-{step - step % 2}" / FILE).exists()
    assert "resume from checkpoint at" in run_cli(
        *train, "--auto-resume-from-checkpoints", env=SHIM
    )
    for name in ("sera/round-02/margins.parquet", "sera/round-03/margins.parquet",
                 "sera/round-03/rows.parquet", "model.safetensors"):  # fmt: skip
        assert (run / name).read_bytes() == (undisturbed.out / name).read_bytes(), name


@pytest.mark.cli
def test_two_ranks_record_what_one_process_records(
    undisturbed: Undisturbed, config: MakeConfig, run_cli: RunCli
) -> None:
    path = config(**keys_of("training", micro_batch_size=2))
    run_cli("train", path, *TORCHRUN, env=RANKS)
    found, expected = margins(output_dir(path), 2), margins(undisturbed.out, 2)
    assert (found["measured_in"] == 1).all()
    assert np.abs(found["margin"] - expected["margin"]).max() < 1e-4
    assert expected["margin"].abs().max() > 0.05
