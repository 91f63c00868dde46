"""One real run looked at from outside: schedule, logs, checkpoints; and TRL's other losses."""

from __future__ import annotations

import ast
import inspect
import json
import math
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import TRAIN_PAIRS, MakeConfig, RunCli, output_dir

from sera_plugin.data.metrics import metrics_of

pytestmark = pytest.mark.cli
# 64, 44 and 44 pairs in micro-batches of 4, three to an update: 16, 11, 11 batches.
UPDATES = [6, 4, 4]
RATE = 1e-3


@pytest.fixture(scope="module")
def run(config: MakeConfig, real_cli: RunCli) -> tuple[Path, str]:
    """A run of the installed command line."""
    path = config(
        drop=("evals_per_epoch", "saves_per_epoch"),
        eval_strategy="epoch",
        save_strategy="epoch",
        gradient_accumulation_steps=3,
        lr_scheduler="linear",
        learning_rate=RATE,
        warmup_steps=0,
        use_tensorboard=True,
        sera={
            "selection": {"keep": 38},
            "bootstrap": {"fraction": 0.1, "prompts": 0.3, "max_new_tokens": 16, "guard": False},
        },
    )
    out = real_cli("train", path, "--launcher", "python")
    return output_dir(path), out


@pytest.fixture(scope="module")
def history(run: tuple[Path, str]) -> list[dict[str, Any]]:
    state = run[0] / f"checkpoint-{sum(UPDATES)}/trainer_state.json"
    return json.loads(state.read_text())["log_history"]


def test_every_round_is_one_epoch_of_its_own_length(history: list[dict[str, Any]]) -> None:
    steps = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, sum(UPDATES) + 1))
    ends = {6: 1.0, 10: 2.0, 14: 3.0}
    assert {e["step"]: e["epoch"] for e in steps if e["step"] in ends} == ends
    assert [e["epoch"] for e in history if "eval_loss" in e and e["step"] > 0] == [1.0, 2.0, 3.0]


def test_the_learning_rate_falls_to_zero_over_the_real_updates(
    history: list[dict[str, Any]],
) -> None:
    rates = [entry["learning_rate"] for entry in history if "loss" in entry]
    total = sum(UPDATES)
    assert rates == pytest.approx([RATE * (total - step) / total for step in range(total)])


def test_a_checkpoint_ends_every_round(run: tuple[Path, str]) -> None:
    found = sorted(int(path.name.split("-")[1]) for path in run[0].glob("checkpoint-*"))
    assert found == [6, 10, 14]


def test_the_review_is_logged_at_the_start_of_its_round(history: list[dict[str, Any]]) -> None:
    reviews = [entry for entry in history if "sera/round" in entry]
    assert [(entry["sera/round"], entry["step"]) for entry in reviews] == [(2, 6), (3, 10)]
    for name in [
        "margin_mean",
        "margin_std",
        "margin_q05",
        "margin_q95",
        "threshold",
        "accuracy_train",
        "accuracy_eval",
        "bootstrapped",
        "shortfall",
        "unique_answer_ratio",
        "chosen_tokens_offline",
        "kl_policy_samples",
        "seconds_scoring",
        "seconds_generation",
        "tokens_per_second_scoring",
        "tokens_per_second_generation",
    ]:
        assert all(math.isfinite(entry[f"sera/{name}"]) for entry in reviews), name
    assert "sera/kept_overlap" not in reviews[0]
    assert 0 <= reviews[1]["sera/kept_overlap"] <= 1
    assert sum("sera/seconds_training" in entry for entry in history) >= 2
    assert sum("sera/tokens_per_second_training" in entry for entry in history) >= 2


def test_every_logged_number_is_in_the_registry(history: list[dict[str, Any]]) -> None:
    names = {name for entry in history for name in entry if name.startswith("sera/")}
    logged = {name.removeprefix("sera/") for name in names}
    assert {"seconds_training", "tokens_per_second_training", "accuracy_eval"} <= logged
    assert logged == {metric.name for metric in metrics_of(logged)}


def test_reporters_get_the_metrics(run: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in run[0].rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    names = set(events.Tags()["scalars"])
    assert any(name.endswith("sera/margin_mean") for name in names), names


def test_the_log_shows_bars_estimates_and_the_table(run: tuple[Path, str]) -> None:
    out = run[1]
    assert "Round 2: scoring offline pairs" in out
    assert "Round 2: sampling" in out
    assert "Estimate for each reviewed round" in out
    table = [line for line in out[out.rindex("SeRA rounds") :].splitlines() if line[:1] == "│"]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table]
    assert cells[0] == ["kept", str(TRAIN_PAIRS), "38", "38"]
    assert max(map(len, table)) <= 80


def test_the_console_has_no_dict_of_a_review_and_ends_with_the_way_to_the_report(
    run: tuple[Path, str],
) -> None:
    folder, out = run
    assert "'sera/" not in out
    assert "{'loss'" in out
    assert "took 0:00:00" not in out
    assert [f"Round {n}: trained on " in out for n in (1, 2, 3)] == [True] * 3
    assert f"`axolotl sera report {folder}` shows the run." in out.splitlines()[-1]
    assert out.count("axolotl sera report") == 1
    written = json.loads((folder / "sera/log.json").read_text())
    assert sum("sera/margin_mean" in entry for entry in written) == 2


def test_the_card_says_sera_with_its_rounds_and_reviews(run: tuple[Path, str]) -> None:
    card = (run[0] / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert {"sera", "dpo"} <= set(head["tags"])
    assert "trained with SeRA, a method introduced in [SeRA: Self-Reviewing" in card
    assert "https://huggingface.co/papers/2410.09362" in card
    assert "eprint        = {2410.09362}" in card
    assert "| 1 | all of D | 64 | 0 | 6 |\n| 2 | reviewed | 44 | 6 | 4 |" in card
    reviews = card[card.index("## Reviews") :].split("\n## ")[0].splitlines()[2:]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in reviews if line]
    assert [line[0] for line in lines] == ["Round", "---", "2", "3"]
    summary = json.loads((run[0] / "sera/round-03/summary.json").read_text())
    assert dict(zip(lines[0], lines[-1], strict=True))["margin"] == f"{summary['margin_mean']:.3f}"


LOSSES = [
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]


def test_all_of_trls_losses_at_once_with_weights_and_smoothing(
    config: MakeConfig, run_cli: RunCli
) -> None:
    path = config(
        dpo_loss_type=LOSSES,
        dpo_loss_weights=[1 / (1 + i) for i in range(len(LOSSES))],
        dpo_label_smoothing=0.1,
        num_epochs=2,
        saves_per_epoch=1,
    )
    run_cli("train", path, "--launcher", "python")
    settings = json.loads((output_dir(path) / "sera/run.json").read_text())
    assert settings["loss_type"] == LOSSES
    state = json.loads((output_dir(path) / "checkpoint-16/trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 16
    assert all(math.isfinite(loss) and loss != 0 for loss in losses)


def test_every_loss_of_trl_is_named_here() -> None:
    from trl import DPOTrainer

    source = textwrap.dedent(inspect.getsource(DPOTrainer._compute_loss))
    known = {
        node.comparators[0].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Name)
        and node.left.id == "loss_type"
        and isinstance(node.ops[0], ast.Eq)
        and isinstance(node.comparators[0], ast.Constant)
    }
    assert known == set(LOSSES), "TRL's losses have changed"
