"""Switching SeRA on and off, overrides on the command line, and runs that repeat."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from command_line import TRAIN_PAIRS, MakeConfig, RunCli, output_dir

from sera_plugin.config import SeraConfig

pytestmark = pytest.mark.cli

BATCH = 8
ROUND = TRAIN_PAIRS // BATCH
"""Updates of a round: by default a reviewed round is as large as D."""


def weights(config: Path) -> bytes:
    return (output_dir(config) / "model.safetensors").read_bytes()


def round_table(config: Path, name: str) -> pa.Table:
    return pq.read_table(output_dir(config) / "sera" / "round-02" / name)


def last_state(config: Path) -> dict[str, Any]:
    """``trainer_state.json`` of the last checkpoint."""
    checkpoints = output_dir(config).glob("checkpoint-*")
    last = max(checkpoints, key=lambda path: int(path.name.split("-")[1]))
    return json.loads((last / "trainer_state.json").read_text())


def rounds_of(config: Path) -> list[str]:
    return sorted(path.name for path in (output_dir(config) / "sera").glob("round-*"))


def rates(state: dict[str, Any]) -> list[float]:
    return [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]


@pytest.fixture(scope="module")
def plain(config: MakeConfig, run_cli: RunCli) -> Path:
    """A DPO run of two epochs without the plugin."""
    path = config(drop=("plugins", "sera"), num_epochs=2)
    run_cli("train", path, "--launcher", "python")
    return path


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plugin that reports which log-softmax TRL's DPO trainer uses."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "softmax_probe.py").write_text(
        "from axolotl.integrations.base import BasePlugin\n"
        "class Probe(BasePlugin):\n"
        "    def post_trainer_create(self, cfg, trainer):\n"
        "        from trl.trainer.dpo_trainer import selective_log_softmax\n"
        "        print('log-softmax of', selective_log_softmax.__module__, flush=True)\n"
    )
    return folder


@pytest.fixture(scope="module")
def reviewed(config: MakeConfig, run_cli: RunCli, probe: Path) -> tuple[Path, str]:
    """A SeRA run of two rounds, asked for on the command line, and its output."""
    path = config(plugins=["sera_plugin.SeRAPlugin", "softmax_probe.Probe"])
    output = run_cli(
        "train",
        path,
        "--launcher",
        "python",
        "--num-epochs",
        "2",
        env={"PYTHONPATH": str(probe)},
    )
    return path, output


def assert_off(config: Path, plain: Path) -> None:
    assert weights(config) == weights(plain)
    assert not (output_dir(config) / "sera").exists()


def test_off_in_the_yaml(config: MakeConfig, run_cli: RunCli, plain: Path):
    path = config(num_epochs=2, sera=False)
    run_cli("train", path, "--launcher", "python")
    assert_off(path, plain)


def test_off_by_the_environment_and_the_default_launcher(
    config: MakeConfig, real_cli: RunCli, plain: Path
):
    path = config(num_epochs=2, trainer_cls="sera_plugin.trainer.SeRATrainer")
    output = real_cli("train", path, "--", "--num_processes", "1", env={"SERA": "off"})
    assert "SeRA is switched off by the environment variable SERA" in output
    assert_off(path, plain)


def test_off_by_our_command(config: MakeConfig, run_cli: RunCli, plain: Path):
    path = config(num_epochs=3)
    run_cli("sera", "train", path, "--no-sera", "--num-epochs", "2", "--launcher", "python")
    assert_off(path, plain)


def test_off_by_the_module(config: MakeConfig, run_python: RunCli, plain: Path):
    path = config(num_epochs=2)
    run_python("-m", "axolotl.cli.train", path, "--sera", "False")
    assert_off(path, plain)


def test_our_command_hands_arguments_on(
    config: MakeConfig, real_cli: RunCli, reviewed: tuple[Path, str]
):
    path = config(num_epochs=2, seed=8)
    real_cli(
        "sera", "train", path, "--launcher", "torchrun", "--max-steps", "10",
        "--", "--nproc_per_node", "1",
    )  # fmt: skip
    assert rounds_of(path) == ["round-01", "round-02"]
    assert last_state(path)["global_step"] == 10
    # Runs with one seed are equal (below); those with another are not.
    for name in ("rows.parquet", "margins.parquet"):
        tables = [round_table(run, name) for run in (path, reviewed[0])]
        assert not tables[0].equals(tables[1])


def test_help_and_schema():
    from axolotl.cli.main import cli

    def output(*args: str) -> str:
        result = CliRunner().invoke(cli, ["sera", *args])
        assert result.exit_code == 0
        return result.stdout

    overview = output("--help")
    assert "schema" in overview
    assert "train" in overview
    assert "--no-sera" in output("train", "--help")
    text = output("schema")
    assert json.loads(text[text.index("{") :]) == SeraConfig.model_json_schema()


def test_fewer_epochs_on_the_command_line(reviewed: tuple[Path, str]):
    path, output = reviewed
    assert rounds_of(path) == ["round-01", "round-02"]
    state = last_state(path)
    assert state["global_step"] == state["max_steps"] == 2 * ROUND
    assert state["epoch"] == state["num_train_epochs"] == 2
    shown = rates(state)
    assert len(shown) == 2 * ROUND
    # The rate of an update is logged as it was used: the last one is the last above zero.
    assert shown[0] == max(shown)
    assert 0 < shown[-1] < 0.02 * shown[0]
    assert "SeRA is done" in output


def test_the_loss_runs_on_the_hosts_own_kernels(reviewed: tuple[Path, str]):
    _, output = reviewed
    triton = importlib.util.find_spec("triton") is not None
    module = "axolotl.monkeypatch.trainer.utils" if triton else "trl.trainer.utils"
    assert f"log-softmax of {module}" in output


def test_max_steps_caps_the_run(config: MakeConfig, run_cli: RunCli):
    path = config()
    run_cli("train", path, "--launcher", "python", "--max-steps", "5")
    state = last_state(path)
    assert state["global_step"] == state["max_steps"] == 5
    shown = rates(state)
    assert len(shown) == 5
    assert 0 < shown[-1] < 0.2 * shown[0]
    assert rounds_of(path) == ["round-01"]


def test_one_seed_gives_one_run(config: MakeConfig, run_cli: RunCli, reviewed: tuple[Path, str]):
    first, _ = reviewed
    second = config(num_epochs=2)
    run_cli("train", second, "--launcher", "python")
    assert weights(first) == weights(second)
    for name in ("rows.parquet", "margins.parquet"):
        tables = [round_table(run, name) for run in (first, second)]
        assert tables[0].num_rows >= TRAIN_PAIRS
        assert tables[0].equals(tables[1]), name


def test_preprocess_prepares_what_training_reads(config: MakeConfig, run_cli: RunCli):
    path = config(num_epochs=2)
    prepared = Path(yaml.safe_load(path.read_text())["dataset_prepared_path"])
    run_cli("preprocess", path)
    written = sorted(prepared.rglob("data-*.arrow"))
    assert len(written) == 2
    assert not output_dir(path).joinpath("sera").exists()
    output = run_cli("train", path, "--launcher", "python", "--max-steps", "9")
    assert output.count("Loading prepared dataset from disk") == 2
    assert sorted(prepared.rglob("data-*.arrow")) == written


def evaluated(config: Path) -> dict[str, list[str]]:
    """What `axolotl evaluate` wrote, by name of the measure, times left out."""
    with (output_dir(config) / "eval_summary.csv").open(newline="") as file:
        rows = {row["metric"]: [row["training"], row["validation"]] for row in csv.DictReader(file)}
    timed = ("runtime", "_per_second", "_time")
    return {name: values for name, values in rows.items() if not name.endswith(timed)}


def test_evaluate_finds_what_it_finds_without_the_plugin(
    config: MakeConfig, run_cli: RunCli, reviewed: tuple[Path, str]
):
    trained = str(output_dir(reviewed[0]))
    found = []
    for sera in (True, False):
        path = config(num_epochs=2, sera=sera, base_model=trained)
        run_cli("evaluate", path, "--launcher", "python")
        found.append(evaluated(path))
        assert not rounds_of(path)
    assert found[0] == found[1]
    assert float(found[0]["logps/chosen"][1]) < 0


def test_inference_asks_the_trained_policy(
    config: MakeConfig, run_cli: RunCli, reviewed: tuple[Path, str]
):
    trained = str(output_dir(reviewed[0]))
    path = config(trainer_cls="sera_plugin.trainer.SeRATrainer", base_model=trained)
    output = run_cli("inference", path, "--launcher", "python")
    assert "Give me an instruction" in output
    assert "SeRA is off" not in output
    assert not rounds_of(path)
