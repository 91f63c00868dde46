"""Real runs that bootstrap through TRL's server over loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import MakeConfig, RunCli, output_dir
from vllm_serving import serving

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
        **({"num_epochs": 3} | changes),
    )


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, config: MakeConfig, run_cli: RunCli, llama: Path
) -> dict[str, tuple[Path, str]]:
    """The same run by both engines: its output folder and what it said."""
    folder = tmp_path_factory.mktemp("server")
    done = {}
    with serving(llama, folder) as server:
        for engine in ("transformers", "vllm"):
            path = config_for(config, engine, server.port)
            said = run_cli("train", path, "--launcher", "python", env=server.environment)
            done[engine] = output_dir(path), said
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
