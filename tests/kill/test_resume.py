"""Runs that are killed and resumed against one that is not."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import SHIM, MakeConfig, RunCli, output_dir
from ranks import RANKS, TORCHRUN, zero_config
from safetensors.torch import load_file
from warm import Commands

from sera_plugin.training.checkpoints import EXIT_CODE

pytestmark = pytest.mark.cli
CASES: dict[str, dict[str, Any]] = {
    "fixed": {"sera": {"bootstrap": {"max_new_tokens": 16, "ensemble": True, "guard": False}}},
    "previous": {
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "sera": {"reference": "previous", "bootstrap": {"max_new_tokens": 16, "guard": False}},
    },
}


PREVIOUS, FIXED = (
    pytest.mark.parametrize("undisturbed", [case], indirect=True) for case in ("previous", "fixed")
)


@pytest.fixture(scope="module")
def undisturbed(request: pytest.FixtureRequest, config: MakeConfig, run_cli: RunCli) -> Path:
    path = config(
        plugins=["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
        saves_per_epoch=4,
        save_total_limit=12,
        num_epochs=3,
        learning_rate=5e-3,
        **CASES[request.param],
    )
    run_cli("train", path, "--launcher", "python", env=SHIM)
    return path


def results(run: Path, rounds: tuple[int, ...] = (2, 3)) -> dict[str, bytes]:
    names = ["margins.parquet", "rows.parquet", "bootstrapped.jsonl", "candidates.parquet"]
    files = [run / f"sera/round-{n:02d}" / name for n in rounds for name in names]
    files += [*run.glob("*.safetensors"), run / "sera/run.json"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.fixture
def again(undisturbed: Path, tmp_path: Path) -> Path:
    """The config of the undisturbed run with an ``output_dir`` of its own."""
    keys = yaml.safe_load(undisturbed.read_text())
    keys["output_dir"] = str(tmp_path / "out")
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(keys))
    return path


def check_resumed(undisturbed: Path, out: Path) -> None:
    assert not list(out.glob("sera-earlier-*"))
    expected, found = results(output_dir(undisturbed)), results(out)
    assert found.keys() == expected.keys()
    assert {name for name in expected if found[name] != expected[name]} == set()
    assert evaluations(out) == evaluations(output_dir(undisturbed))
    shutil.rmtree(out)


def evaluations(run: Path) -> dict[int, tuple[float, float]]:
    """Losses and margins at each round's end; the host also evaluates where a run starts."""
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    found = {
        entry["step"]: (entry["eval_loss"], entry["eval_rewards/margins"])
        for entry in history
        if "eval_loss" in entry and entry["step"] in (8, 16, 24)
    }
    assert len(found) == 3
    return found


# 8 updates a round, a checkpoint every 2: within rounds 1, 2 and 3, and where round 3 begins.
@PREVIOUS
@pytest.mark.parametrize(
    "step", [13, 16, *(pytest.param(step, marks=pytest.mark.crash) for step in (3, 8, 10, 15, 21))]
)
def test_a_killed_run_continues_as_if_nothing_had_happened(
    undisturbed: Path, again: Path, run_cli: RunCli, step: int
) -> None:
    out = output_dir(again)
    train = ("train", again, "--launcher", "python")
    run_cli(*train, env=SHIM | {"DIE_AT_STEP": str(step)}, expect_failure=True)
    assert not (out / "model.safetensors").exists()
    last = step - step % 2
    if step == 13:
        # As a kill inside the save leaves it: the host writes this file last.
        (out / f"checkpoint-{last}/trainer_state.json").write_text('{"epoch": 1.')
        last -= 2
    log = run_cli(*train, "--auto-resume-from-checkpoints", env=SHIM)
    assert f"resume from checkpoint at {out}/checkpoint-{last}" in log
    assert (out / "unfinished-checkpoint-12").exists() == (step == 13)
    if step == 16:
        # Round 3 was made, but no checkpoint of it: it is made again from finished shards.
        for what in ("scoring offline pairs", "sampling"):
            assert re.search(rf"Round 3: {what}: (\d+) of \1 batches are reused", log), what
    assert not (out / "sera/work").exists()
    check_resumed(undisturbed, out)


@FIXED
@pytest.mark.parametrize("point", ["TERM_AT_STEP", "INT_AT_STEP"])
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(
    undisturbed: Path, again: Path, commands: Commands, run_cli: RunCli, point: str
) -> None:
    out = output_dir(again)
    command = ("train", again, "--launcher", "python")
    done = commands.axolotl(again.with_name("log"), *command, **SHIM, **{point: "14"})
    assert done.code == EXIT_CODE, done.output[-4000:]
    assert "Asked to stop: leaving with code 75" in done.output
    assert ("Ctrl-C: the run ends with a checkpoint" in done.output) == (point == "INT_AT_STEP")
    how = "the same command with --auto-resume-from-checkpoints goes on"
    assert f"Stopped; {how} from {out}/checkpoint-15." in done.output
    assert not (out / "model.safetensors").exists()
    run_cli(*command, "--auto-resume-from-checkpoints", env=SHIM)
    check_resumed(undisturbed, out)


@FIXED
def test_a_second_ctrl_c_ends_a_run_at_once(
    undisturbed: Path, again: Path, commands: Commands
) -> None:
    points = {"INT_AT_STEP": "14", "INT_AGAIN_AT_STEP": "14"}
    command = ("train", again, "--launcher", "python")
    done = commands.axolotl(again.with_name("log"), *command, **SHIM, **points)
    assert done.code == -signal.SIGINT
    assert "Ctrl-C: the run ends with a checkpoint" in done.output
    assert "Asked to stop" not in done.output
    assert not (output_dir(again) / "checkpoint-15").exists()


@FIXED
def test_a_resumed_run_names_what_has_changed(
    undisturbed: Path, again: Path, run_cli: RunCli
) -> None:
    out = output_dir(again)
    shutil.copytree(output_dir(undisturbed), out)
    keys = yaml.safe_load(again.read_text())
    keys["sera"]["ensemble"] = 0.5
    again.write_text(yaml.safe_dump(keys))
    log = run_cli(
        *("train", again, "--launcher", "python", "--resume-from-checkpoint"),
        out / "checkpoint-20",
        env=SHIM,
        expect_failure=True,
    )
    assert (
        "resume: sera.ensemble was 0.3 and is 0.5; resume with what the run was started with, or "
        "start anew in another output_dir."
    ) in log


MICRO_BATCH = {1: 4, 2: 2}


def start(ranks: int) -> tuple[str, ...]:
    return TORCHRUN if ranks == 2 else ("--launcher", "python")


@FIXED
@pytest.mark.parametrize(("before", "after"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.crash)])
def test_another_number_of_processes_goes_on_with_the_stored_round(
    undisturbed: Path, again: Path, run_cli: RunCli, before: int, after: int
) -> None:
    out, keys = output_dir(again), yaml.safe_load(again.read_text())
    again.write_text(yaml.safe_dump(keys | {"micro_batch_size": MICRO_BATCH[before]}))
    died = RANKS | {"DIE_AT_STEP": "11"}
    run_cli("train", again, *start(before), env=died, expect_failure=True)
    stored = results(out, rounds=(2,))

    resume = ("train", again, "--auto-resume-from-checkpoints", *start(after))
    again.write_text(yaml.safe_dump(keys | {"micro_batch_size": 8}))
    log = run_cli(*resume, env=RANKS, expect_failure=True)
    assert (
        "resume: the global batch (micro_batch_size × gradient_accumulation_steps × processes) "
        f"was 8 and is {16 * after}; resume with what the run was started with"
    ) in log
    assert "Loading model" not in log

    again.write_text(yaml.safe_dump(keys | {"micro_batch_size": MICRO_BATCH[after]}))
    log = run_cli(*resume, env=RANKS)
    assert f"resume from checkpoint at {out}/checkpoint-10" in log
    assert f"the number of processes was {before} and is {after}; the run goes on" in log
    found = results(out, rounds=(2,))
    assert {name: found[name] for name in stored} == stored
    whole, cut = (
        load_file(run / "checkpoint-16/model.safetensors") for run in (output_dir(undisturbed), out)
    )
    for name, weights in whole.items():
        torch.testing.assert_close(cut[name], weights, atol=1e-4, rtol=1e-3)


@pytest.mark.crash
@pytest.mark.parametrize("step", [11, 16])
def test_two_ranks_under_zero3_continue_as_if_nothing_had_happened(
    config: MakeConfig, run_cli: RunCli, tmp_path: Path, step: int
) -> None:
    changes = {
        "plugins": ["cpu_ranks.CpuRanks", "sera_plugin.SeRAPlugin"],
        "micro_batch_size": 2,
        "saves_per_epoch": 4,
        "learning_rate": 5e-3,
        "deepspeed": zero_config(tmp_path, 3),
    }
    calm, killed = config(**changes), config(**changes)
    run_cli("train", calm, *TORCHRUN, env=RANKS)
    died = RANKS | {"DIE_AT_STEP": str(step)}
    run_cli("train", killed, *TORCHRUN, env=died, expect_failure=True)
    resume = ("train", killed, "--auto-resume-from-checkpoints", *TORCHRUN)
    assert "resume from checkpoint at" in run_cli(*resume, env=RANKS)
    check_resumed(calm, output_dir(killed))
