"""A real run is killed at points of every phase, resumed, and compared byte for byte.

``make test`` takes the points without the mark ``crash``, ``make test-crash`` all of them. Work
is counted in finished batches: what the killed and the resumed run did together against what the
undisturbed run did.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import SHIM, MakeConfig, RunCli, output_dir
from ranks import RANKS, TORCHRUN, zero_config
from warm import Commands, Done

from sera_plugin.config import TrainingConfig
from sera_plugin.sampling import sampler as generation
from sera_plugin.scoring import scorer as scoring
from sera_plugin.training.checkpoints import EXIT_CODE

pytestmark = [pytest.mark.cli, pytest.mark.kill]
CONFIG: dict[str, Any] = {
    "plugins": ["crash_points.CrashPoints", "sera_plugin.SeRAPlugin"],
    "sequence_len": 48,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "save_steps": 2,
    "learning_rate": 5e-3,
    "sera": {
        "selection": {"keep": 0.3},
        "bootstrap": {"fraction": 0.2, "max_new_tokens": 16, "ensemble": True},
        # So that every pass has many batches; ALL_ON has runs with both.
        "training": {"shared_scoring": False, "sampled_logps": False},
    },
}
ALL_ON = {
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "sera": CONFIG["sera"] | {"training": dict.fromkeys(TrainingConfig.model_fields, True)},
}
EVALUATED_AT = (6, 12, 16)  # the host's equal shares of all updates
UPDATES_A_CHECKPOINT = 2

SCORE = {"at": "call", "what": "sera_plugin.scoring.scorer:Scorer._batch"}
SAMPLE = {"at": "call", "what": "sera_plugin.sampling.sampler:Sampler._batch"}
WEIGHTS = {"at": "call", "what": "transformers.modeling_utils:safe_save_file"}
OPTIMIZER = {"at": "call", "what": "transformers.trainer:Trainer._save_optimizer_and_scheduler"}
SNAPSHOT = {"at": "call", "what": "sera_plugin.scoring.snapshot:Snapshot.save"}
REFERENCE = "^reference Reference log-probs$"

# Rounds of 64, 32 and 32 pairs: 8, 4 and 4 updates. D is 52 batches in 2 shards, held-out pairs
# are 9 batches, sampling is 10 batches in 5 shards.
POINTS: dict[str, dict[str, Any]] = {
    "reference, before a shard is renamed": {
        "at": "rename",
        "what": "/shard",
        "within": REFERENCE,
    },
    "reference, within the second shard's file": {
        "at": "open",
        "what": r"/\.?shard",
        "within": REFERENCE,
        "count": 2,
        "bytes": 100,
    },
    "reference, batch 38": SCORE | {"within": REFERENCE, "count": 38},
    "held-out reference, batch 3": SCORE | {"within": "^reference .* of eval", "count": 3},
    "round 1, before the first checkpoint": {"at": "step", "what": 1},
    "checkpoint, within the weights": WEIGHTS | {"count": 2, "bytes": 5000},
    "checkpoint, before the optimizer": OPTIMIZER | {"count": 2},
    "checkpoint, within the optimizer's file": OPTIMIZER | {"count": 2, "bytes": 5000},
    "checkpoint, before its state": {"at": "open", "what": "trainer_state.json", "count": 2},
    "round 1, between two checkpoints": {"at": "step", "what": 5},
    "round 1, after its last checkpoint": {"at": "rename", "what": "round-01/.*summary"},
    "review 1, before any batch": SCORE | {"within": "round-02"},
    "review 1, offline batch 40": SCORE | {"within": "round-02 .*offline", "count": 40},
    "review 1, held-out batch 5": SCORE | {"within": "round-02 .*eval", "count": 5},
    "review 1, second batch of sampling": SAMPLE | {"count": 2},
    "review 1, last batch of sampling": SAMPLE | {"count": 10},
    "review 1, sampled answers, batch 36": SCORE
    | {"within": "round-02 Scoring sampled", "count": 36},
    "review 1, their reference, batch 3": SCORE
    | {"within": "round-02 Reference of sampled", "count": 3},
    "artifacts, before their folder": {"at": "mkdir", "what": r"round-02\.\w+\.tmp"},
    "artifacts, within the rows": {"at": "open", "what": "rows.parquet", "bytes": 100},
    "artifacts, before the folder is renamed": {"at": "rename", "what": r"round-02\.\w+\.tmp"},
    "artifacts, before the policy is kept": SNAPSHOT,
    "round 2, before its first update": {"at": "step", "what": 8},
    "round 2, within its last checkpoint": OPTIMIZER | {"count": 6},
    "review 2, previous policy, batch 2": SCORE
    | {"within": "round-03 Previous policy", "count": 2},
    "review 2, within the kept policy": SNAPSHOT | {"count": 2, "bytes": 1000},
    "round 3, between two checkpoints": {"at": "step", "what": 13},
    "end, within the final weights": WEIGHTS | {"count": 9, "bytes": 5000},
    "end, before the shards are deleted": {"at": "rmtree", "what": "sera/work$"},
}
COUNT_WHEN_RESUMED = {
    "reference, within the second shard's file": 2,
    "review 1, second batch of sampling": 3,
    "review 1, last batch of sampling": 3,
    "end, within the final weights": 3,
}
IN_EVERY_TEST_RUN = {
    "round 1, before the first checkpoint",
    "checkpoint, within the optimizer's file",
    "review 1, last batch of sampling",
    "artifacts, before the folder is renamed",
    "end, before the shards are deleted",
}


class Runs:
    """Runs of one config, each with an ``output_dir`` and a note of its work."""

    def __init__(self, commands: Commands, original: Path) -> None:
        self.commands, self.original = commands, original
        self.undisturbed = self.copy(original.with_name("undisturbed"))
        self.completed(self.undisturbed)

    def copy(self, folder: Path, **changes: Any) -> Path:
        folder.mkdir(exist_ok=True)
        keys = yaml.safe_load(self.original.read_text()) | changes
        keys["output_dir"] = str(folder / "out")
        path = folder / "config.yml"
        path.write_text(yaml.safe_dump(keys))
        return path

    def run(self, config: Path, **env: str) -> Done:
        command = ("train", config, "--launcher", "python", "--auto-resume-from-checkpoints")
        note = SHIM | {"WORK_LOG": str(config.with_name("work"))}
        return self.commands.axolotl(config.with_name("log"), *command, **note, **env)

    def completed(self, config: Path) -> str:
        done = self.run(config)
        assert done.code == 0, done.output[-8000:]
        return done.output

    def killed(self, config: Path, spec: dict[str, Any]) -> None:
        self.ended(config, spec, -(signal.SIGXFSZ if "bytes" in spec else signal.SIGKILL))

    def ended(self, config: Path, spec: dict[str, Any], code: int) -> str:
        """Run with a point at which the process ends with ``code``."""
        done = self.run(config, CRASH=json.dumps(spec))
        assert done.code == code, done.output[-8000:]
        return done.output


@pytest.fixture(scope="module")
def runs(config: MakeConfig, commands: Commands) -> Runs:
    return Runs(commands, config(drop=("saves_per_epoch",), **CONFIG))


@pytest.fixture
def again(runs: Runs, tmp_path: Path) -> Iterator[Path]:
    yield runs.copy(tmp_path)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(name, marks=[] if name in IN_EVERY_TEST_RUN else pytest.mark.crash)
        for name in POINTS
    ],
)
def test_killed_and_resumed(runs: Runs, again: Path, point: str, record_property: Any) -> None:
    record_property("killed", point)
    runs.killed(again, POINTS[point])
    runs.completed(again)
    record_property("repeated", check_work(runs.undisturbed, again))
    check_results(output_dir(runs.undisturbed), output_dir(again))


@pytest.mark.crash
def test_killed_at_one_point_after_another(runs: Runs, again: Path, record_property: Any) -> None:
    record_property("killed", f"all {len(POINTS)} points in one run")
    for name, spec in POINTS.items():
        # A resumed run has less to do.
        runs.killed(again, spec | {"count": COUNT_WHEN_RESUMED.get(name, 1)})
    runs.completed(again)
    record_property("repeated", check_work(runs.undisturbed, again, kills=len(POINTS)))
    check_results(output_dir(runs.undisturbed), output_dir(again))


# The third of the four micro-batches of update 6; the last checkpoint is of update 4.
SAVING_POINTS = {
    "between the micro-batches of an update": {
        "at": "call",
        "what": "sera_plugin.host.round_trainer:RoundTrainer.training_step",
        "count": 23,
    },
    "in a pass that reads prompts once": {
        "at": "call",
        "what": "sera_plugin.scoring.scorer:Scorer.shared_logps",
        "within": "round-02 Reference of sampled",
    },
    "sampling with log-probs": SAMPLE,
}


@pytest.fixture(scope="module")
def saving_runs(config: MakeConfig, commands: Commands) -> Runs:
    return Runs(commands, config(drop=("saves_per_epoch",), **CONFIG | ALL_ON))


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(name, marks=[] if name.startswith("between") else pytest.mark.crash)
        for name in SAVING_POINTS
    ],
)
def test_killed_and_resumed_with_all_that_saves_work(
    saving_runs: Runs, tmp_path: Path, point: str, record_property: Any
) -> None:
    record_property("killed", point)
    again = saving_runs.copy(tmp_path)
    saving_runs.killed(again, SAVING_POINTS[point])
    if point.startswith("between"):
        assert (output_dir(again) / "checkpoint-4").exists()
        assert not (output_dir(again) / "checkpoint-6").exists()
    saving_runs.completed(again)
    check_results(output_dir(saving_runs.undisturbed), output_dir(again))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


TERM: dict[str, dict[str, Any]] = {
    "reference": SCORE | {"within": REFERENCE, "count": 3},
    "offline pairs": SCORE | {"within": "round-02 .*offline", "count": 3},
    "sampling": SAMPLE | {"count": 3},
}


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("reference", marks=pytest.mark.crash),
        pytest.param("offline pairs", marks=pytest.mark.crash),
        "sampling",
    ],
)
def test_sigterm_ends_with_the_shard_and_nothing_is_done_twice(
    runs: Runs, tmp_path: Path, phase: str
) -> None:
    # No checkpoint before the end, so none stands where round 1 ends, at 8.
    again = runs.copy(tmp_path, save_steps=16)
    log = runs.ended(again, TERM[phase] | {"signal": "SIGTERM"}, EXIT_CODE)
    assert "Asked to stop: leaving with code 75" in log
    out = output_dir(again)
    assert not (out / "model.safetensors").exists()
    assert (out / "checkpoint-8/trainer_state.json").exists() == (phase != "reference")
    stopped = work(again.with_name("work"))
    passes = Counter(what for _, what, _, _ in stopped)
    if phase == "sampling":
        assert passes["Round 2: sampling"] == 2 * generation.SHARD_BATCHES
        assert "Scoring sampled answers" not in passes
    else:
        assert list(passes.values())[-1] == scoring.SHARD_BATCHES
    runs.completed(again)
    assert not any(check_work(runs.undisturbed, again).values())
    check_results(output_dir(runs.undisturbed), out)


def test_continuous_batching_makes_the_same_run(runs: Runs, again: Path) -> None:
    # Here because the undisturbed run is: its draws, in float32, are those of `generate`.
    keys = yaml.safe_load(again.read_text())
    keys["sera"]["bootstrap"]["engine"] = "transformers_paged"
    again.write_text(yaml.safe_dump(keys))
    runs.completed(again)
    assert work(again.with_name("work")).keys() != work(runs.undisturbed.with_name("work")).keys()
    differ = {"sera/run.json"}
    check_results(output_dir(runs.undisturbed), output_dir(again), differ)


def check_results(expected: Path, found: Path, differ: Collection[str] = ()) -> None:
    ours, theirs = results(found), results(expected)
    assert ours.keys() == theirs.keys()
    assert {name for name in theirs if ours[name] != theirs[name]} == set(differ)


CLOCK = ("seconds", "tokens_per_second")


def results(run: Path) -> dict[str, Any]:
    """Weights, artifacts and logged metrics of reviews, without what a clock says."""
    files = [path for path in (run / "sera").rglob("*") if path.is_file()]
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    files += [*run.glob("*.safetensors"), *last.glob("*.safetensors"), *last.glob("*.pt")]
    found: dict[str, Any] = {str(path.relative_to(run)): path.read_bytes() for path in files}
    for name in [name for name in found if name.endswith("summary.json")]:
        found[name] = _timeless(json.loads(found[name]))
    state = json.loads((last / "trainer_state.json").read_text())
    found["metrics"] = _metrics(state["log_history"])
    found["evaluations"] = {
        entry["step"]: (entry["eval_loss"], entry["eval_rewards/margins"])
        for entry in state["log_history"]
        if "eval_loss" in entry and entry["step"] in EVALUATED_AT
    }
    found["sera/log.json"] = _metrics(json.loads(found["sera/log.json"]))
    assert "sera/round-03/rows.parquet" in found
    assert "model.safetensors" in found
    assert len(found["metrics"]) == 2
    assert len(found["evaluations"]) == 3
    return found


def _metrics(history: list[dict[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """What reviews logged. The host's own entries differ, for it evaluates where a run starts."""
    found = [
        (entry["step"], _timeless({k: v for k, v in entry.items() if k.startswith("sera/")}))
        for entry in history
    ]
    return [(step, numbers) for step, numbers in found if numbers]


def _timeless(numbers: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in numbers.items() if not k.removeprefix("sera/").startswith(CLOCK)}


def check_work(expected: Path, found: Path, kills: int = 1) -> dict[str, int]:
    """What was done more often than needed: no more than what was under way at each kill."""
    needed, done = work(expected.with_name("work")), work(found.with_name("work"))
    assert done.keys() == needed.keys()
    assert set(needed.values()) == {1}
    repeated: Counter[tuple[str, str]] = Counter()
    answers: Counter[str] = Counter()
    for (key, what, _, count), times in done.items():
        repeated[key, what] += times - 1
        answers["sampled" if "sampling" in what else "scored"] += (times - 1) * count
    for (_, what), times in repeated.items():
        if what == "training":
            assert times <= UPDATES_A_CHECKPOINT * kills
        else:
            shard = generation.SHARD_BATCHES if "sampling" in what else scoring.SHARD_BATCHES
            assert times <= shard * kills, f"{what}: {times} batches were computed twice"
    return {**answers, "updates": repeated["update", "training"]}


def work(log: Path) -> Counter[tuple[str, str, int, int]]:
    """How often each batch and each update was done."""
    return Counter(tuple(json.loads(line)) for line in log.read_text().splitlines())


ON_TWO_RANKS = {
    "rank 0 is killed in its third batch of sampling": SAMPLE | {"count": 3},
    "rank 1 gets SIGTERM in its first batch of sampling": SAMPLE
    | {"count": 1, "rank": 1, "signal": "SIGTERM"},
}


@pytest.fixture(scope="module")
def on_two_ranks(
    config: MakeConfig, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Changes of the config for two ranks under ZeRO-3, and the undisturbed run."""
    changes = CONFIG | {
        "plugins": ["cpu_ranks.CpuRanks", *CONFIG["plugins"]],
        "gradient_accumulation_steps": 4,
        "deepspeed": zero_config(tmp_path_factory.mktemp("zero"), 3),
        "sera": {
            "selection": {"keep": 0.3},
            "bootstrap": {"fraction": 0.2, "max_new_tokens": 16},
        },
    }
    path = config(drop=("saves_per_epoch",), **changes)
    note = {"WORK_LOG": str(path.with_name("work"))}
    run_cli("train", path, *TORCHRUN, env=RANKS | note, timeout=900)
    return {"changes": changes, "undisturbed": path}


@pytest.mark.crash
@pytest.mark.parametrize("point", ON_TWO_RANKS)
def test_two_ranks_under_zero3_go_on_with_their_review(
    on_two_ranks: dict[str, Any],
    config: MakeConfig,
    run_cli: RunCli,
    point: str,
    record_property: Any,
) -> None:
    record_property("killed", f"ZeRO-3: {point}")
    again = config(drop=("saves_per_epoch",), **on_two_ranks["changes"])
    env = RANKS | {"WORK_LOG": str(again.with_name("work"))}
    train = ("train", again, "--auto-resume-from-checkpoints", *TORCHRUN)
    struck = env | {"CRASH": json.dumps(ON_TWO_RANKS[point])}
    log = run_cli(*train, env=struck, expect_failure=True, timeout=900)
    assert ("Asked to stop: leaving with code 75" in log) == ("SIGTERM" in point)
    assert len(list(output_dir(again).glob("sera/work/round-02-*/shard-*"))) >= 3
    run_cli(*train, env=env, timeout=900)
    repeated = check_work(on_two_ranks["undisturbed"], again)
    record_property("repeated", repeated)
    assert not any(repeated.values())  # both ends are those of a shard
    check_results(output_dir(on_two_ranks["undisturbed"]), output_dir(again))
