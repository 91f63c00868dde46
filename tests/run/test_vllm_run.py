"""Real runs that bootstrap through TRL's server over loopback."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import SHIM, MakeConfig, Runner, Starting, output_dir
from ranks import LIMIT, RANKS, TORCHRUN, zero_config
from vllm_serving import CPU_VLLM, serving

pytestmark = pytest.mark.cli
# The tiny model's greedy answers never end; a price on tokens makes them the worst there are.
GREEDY = {
    "fraction": 0.3,
    "max_new_tokens": 16,
    "guard": False,
    "temperature": 0,
    "length_penalty": 0.5,
}


def config_for(config: MakeConfig, engine: str, port: int, **changes: Any) -> Path:
    return config(
        sera={"bootstrap": {**GREEDY, "engine": engine}},
        trl={"vllm_server_host": "127.0.0.1", "vllm_server_port": port, "vllm_server_timeout": 60},
        drop=("evals_per_epoch", "test_datasets"),
        learning_rate=2e-3,
        lr_scheduler="constant",
        **({"num_epochs": 3} | changes),
    )


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, config: MakeConfig, starting: Starting, llama: Path
) -> dict[str, tuple[Path, str]]:
    """The same run by both engines: its output folder and what it said."""
    folder = tmp_path_factory.mktemp("server")
    done = {}
    path = os.pathsep.join([str(CPU_VLLM), SHIM["PYTHONPATH"]])
    with serving(llama, folder) as server, starting(path) as commands:
        run_cli = Runner(commands, "axolotl", folder)
        for engine in ("transformers", "vllm"):
            path = config_for(config, engine, server.port)
            said = run_cli("train", path, "--launcher", "python", env=server.environment)
            done[engine] = output_dir(path), said
        path = config_for(
            config,
            "vllm",
            server.port,
            plugins=["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
            deepspeed=zero_config(folder, 3),
            micro_batch_size=2,
            num_epochs=2,
        )
        env = server.environment
        env |= RANKS | {"PYTHONPATH": os.pathsep.join([env["PYTHONPATH"], RANKS["PYTHONPATH"]])}
        said = run_cli("train", path, *TORCHRUN, env=env, timeout=LIMIT)
        done["zero3"] = output_dir(path), said
    return done


def test_the_server_gives_the_same_pairs_as_transformers(
    runs: dict[str, tuple[Path, str]],
) -> None:
    for number in (2, 3):
        folder = Path("sera") / f"round-{number:02d}"
        for table in ("rows.parquet", "candidates.parquet"):
            ours, theirs = (
                pd.read_parquet(runs[engine][0] / folder / table)
                for engine in ("vllm", "transformers")
            )
            pd.testing.assert_frame_equal(ours, theirs, atol=1e-4, rtol=0)
        rows = pd.read_parquet(runs["vllm"][0] / folder / "rows.parquet")
        assert rows["chosen_ids"].notna().sum() == 19


def test_the_weights_are_sent_before_every_review(runs: dict[str, tuple[Path, str]]) -> None:
    said = runs["vllm"][1]
    assert said.count("vLLM's log-probs differ from the policy's by") == 2


def test_two_ranks_under_zero3_send_the_same_weights(runs: dict[str, tuple[Path, str]]) -> None:
    (out, said), (alone, _) = runs["zero3"], runs["vllm"]
    differences = re.findall(r"differ from the policy's by (\S+) nats", said)
    assert len(differences) == 1
    assert float(differences[0]) < 1e-4
    ours, theirs = (
        pd.read_parquet(folder / "sera" / "round-02" / "candidates.parquet")
        .query("source == 'policy'")
        .set_index("example_id")["token_ids"]
        for folder in (out, alone)
    )
    assert set(ours.index) == set(theirs.index)
    # A round on two ranks sums gradients in another order, which rarely turns a token.
    same = [list(ours[example]) == list(theirs[example]) for example in ours.index]
    assert sum(same) > 0.9 * len(same)
