"""The table of new pairs in real loggers, without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from command_line import ENVIRONMENT
from runs_on_disk import _fresh, texts

from sera_plugin.training.publish import COLUMNS, ROWS, log_samples

CODE = """
import json, sys
{start}
from sera_plugin.training.publish import log_samples
pairs = json.load(open(sys.argv[1]))
print(json.dumps(log_samples(pairs, ["{name}", "tensorboard"], 7)))
{end}
"""


def pairs() -> list[dict[str, Any]]:
    return [_fresh(f"id{n}", pair, 2, 0.1 * n) for n, pair in enumerate(texts(ROWS + 5))]


def logged(tmp_path: Path, name: str, start: str, end: str) -> Path:
    """Log the pairs in a process of its own, which wrote to the returned folder."""
    (tmp_path / "pairs.json").write_text(json.dumps(pairs()))
    folder = tmp_path / "logs"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(name=name, start=start, end=end),
         str(tmp_path / "pairs.json")],
        cwd=folder, env=ENVIRONMENT | {"TRACKIO_DIR": str(folder), "WANDB_DIR": str(folder)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f'["{name}"]' in done.stdout, done.stdout + done.stderr
    return folder


def test_wandb_keeps_the_table(tmp_path: Path) -> None:
    start = "import wandb; wandb.init(mode='offline', project='p')"
    folder = logged(tmp_path, "wandb", start, "wandb.finish()")
    (table,) = folder.rglob("*.table.json")
    stored = json.loads(table.read_text())
    assert stored["columns"] == list(COLUMNS)
    assert [row[-1] for row in stored["data"]] == [f"id{n}" for n in range(ROWS)]
    assert stored["data"][3][2] == pairs()[3]["chosen"]


def test_nothing_is_logged_where_no_run_is_open() -> None:
    assert log_samples(pairs(), ["tensorboard"], 7) == ()
    code = (
        "import wandb, sera_plugin.training.publish as s; print(s.log_samples([{}], ['wandb'], 1))"
    )
    broken = code.replace("[{}]", "[]")
    done = subprocess.run(
        [sys.executable, "-c", broken], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert "()" in done.stdout
