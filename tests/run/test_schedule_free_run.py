"""Real runs with a schedule-free optimizer, whose weights to evaluate aren't those it trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import MakeConfig, RunCli, output_dir

pytestmark = pytest.mark.cli
KEYS: dict[str, Any] = {
    "drop": ("evals_per_epoch", "saves_per_epoch"),
    "optimizer": "schedule_free_adamw",
    "learning_rate": 5e-3,
    "save_strategy": "no",
    "sera": {"selection": {"keep": 0.5}, "bootstrap": False},
}


def margins(run: Path, number: int) -> dict[str, tuple[float, float]]:
    table = pq.read_table(run / f"sera/round-{number:02d}/margins.parquet").to_pydict()
    columns = zip(
        table["example_id"], table["policy_chosen_logp"], table["policy_rejected_logp"], strict=True
    )
    return {name: (chosen, rejected) for name, chosen, rejected in columns}


def test_reviews_see_what_the_host_evaluates(config: MakeConfig, run_cli: RunCli) -> None:
    """The host's evaluation at a round's end leaves such weights behind; without one we do."""
    runs = {}
    for strategy in ("epoch", "no"):
        path = config(**KEYS, eval_strategy=strategy)
        run_cli("train", path, "--launcher", "python")
        runs[strategy] = output_dir(path)
    for number in (2, 3):
        assert margins(runs["epoch"], number) == margins(runs["no"], number)
