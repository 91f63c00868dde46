"""The table of new pairs in real loggers, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import RunCli
from runs_on_disk import _fresh, texts

from sera_plugin.training.publish import COLUMNS, ROWS, log_samples

pytestmark = pytest.mark.cli
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


def logged(tmp_path: Path, real_python: RunCli, name: str, start: str, end: str) -> Path:
    """Log the pairs in a process of its own, which wrote to the returned folder."""
    given, script, folder = (tmp_path / part for part in ("pairs.json", "log.py", "logs"))
    given.write_text(json.dumps(pairs()))
    script.write_text(CODE.format(name=name, start=start, end=end))
    folder.mkdir()
    env = {"TRACKIO_DIR": str(folder), "WANDB_DIR": str(folder)}
    said = real_python(script, given, env=env, timeout=300)
    assert f'["{name}"]' in said
    return folder


def test_wandb_keeps_the_table(tmp_path: Path, real_python: RunCli) -> None:
    start = "import wandb; wandb.init(mode='offline', project='p')"
    folder = logged(tmp_path, real_python, "wandb", start, "wandb.finish()")
    (table,) = folder.rglob("*.table.json")
    stored = json.loads(table.read_text())
    assert stored["columns"] == list(COLUMNS)
    assert [row[-1] for row in stored["data"]] == [f"id{n}" for n in range(ROWS)]
    assert stored["data"][3][2] == pairs()[3]["chosen"]


def test_nothing_is_logged_where_no_run_is_open(tmp_path: Path, real_python: RunCli) -> None:
    assert log_samples(pairs(), ["tensorboard"], 7) == ()
    script = tmp_path / "log.py"
    script.write_text(
        "import wandb, sera_plugin.training.publish as s; print(s.log_samples([], ['wandb'], 1))"
    )
    assert "()" in real_python(script)
