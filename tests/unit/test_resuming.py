"""Starting beside an earlier run, and what is checked before a resumed run loads a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from axolotl.utils.dict import DictDefault

from sera_plugin.config import SeraConfig
from sera_plugin.data.store import RunStore
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.training.changes import batch_settings
from sera_plugin.training.checkpoints import prepare_resuming
from sera_plugin.training.checks import check_config
from sera_plugin.training.resume import start

SETTINGS = {"seed": 1, "updates": [8, 4], "sera": {"ensemble": 0.3}}


def earlier_run(output_dir: Path, *names: str) -> RunStore:
    store = RunStore(output_dir)
    start(store, SETTINGS)
    for name in names:
        path = store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return store


SHARD = "work/reference-00/shard-00001.00.parquet"


def test_a_run_that_left_nothing_but_shards_is_gone_on_with(tmp_path: Path) -> None:
    store = earlier_run(tmp_path, SHARD, "pairs.parquet", ".run.json.tmp")
    start(store, SETTINGS)
    assert (store.root / SHARD).read_text() == SHARD
    assert [path.name for path in tmp_path.iterdir()] == ["sera"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (SETTINGS, ["round-01/summary.json"]),
        (SETTINGS | {"seed": 2}, []),
    ],
)
def test_artifacts_are_moved_aside_and_shards_stay_in_use(
    tmp_path: Path, settings: dict[str, Any], names: list[str]
) -> None:
    store = earlier_run(tmp_path, SHARD, *names)
    before = (store.root / "run.json").read_bytes()
    start(store, settings)
    moved = tmp_path / "sera-earlier-1"
    assert (store.root / SHARD).read_text() == SHARD
    assert store.read_run() == settings
    assert (moved / "run.json").read_bytes() == before
    assert all((moved / name).read_text() == name for name in names)
    assert not (moved / "work").exists()


def test_shards_are_found_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    store = earlier_run(tmp_path, SHARD, "round-01/summary.json")
    store.start()  # the artifacts have moved, the shards with them, and nothing else has happened
    assert not store.work.exists()
    start(store, SETTINGS)
    assert (store.root / SHARD).read_text() == SHARD
    assert len(list(tmp_path.iterdir())) == 2


def test_shards_of_a_run_of_its_own_are_not_replaced(tmp_path: Path) -> None:
    store = earlier_run(tmp_path, SHARD, "round-01/summary.json")
    store.start()
    store = earlier_run(tmp_path, "work/reference-00/other")
    assert (store.work / "reference-00/other").exists()
    start(store, SETTINGS)
    assert (store.work / "reference-00/other").exists()


def test_half_written_files_are_deleted_and_no_others(tmp_path: Path) -> None:
    left = [
        ".round-02.0a1b.tmp/rows.parquet", ".policy-02.safetensors.0a1b.tmp", ".tmpJsOrHJ",
        "round-03/.summary.json.0a1b.tmp",
    ]  # fmt: skip
    kept = [".round-02.replaced/rows.parquet", "round-03/rows.parquet", SHARD]
    store = earlier_run(tmp_path, *left, *kept)
    store.drop_leftovers()
    assert [name for name in left + kept if (store.root / name).exists()] == kept
    assert not (store.root / ".round-02.0a1b.tmp").exists()


CONFIG = SeraConfig()
RUN = {
    "sera": CONFIG.model_dump(),
    "base_model": "one",
    "sequence_len": 128,
    "seed": 1,
    "beta": 0.1,
    "pairs": 64,
    **batch_settings(4, 2, 1),
}


def resumed(output_dir: Path, **changes: Any) -> DictDefault:
    checkpoint = output_dir / "checkpoint-8"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 8}))
    (checkpoint / "rng_state.pth").touch()
    RunStore(output_dir).write_run(json.loads(json.dumps(RUN)))
    keys = {
        "output_dir": str(output_dir),
        "auto_resume_from_checkpoints": True,
        "base_model": "one",
        "sequence_len": 128,
        "seed": 1,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "world_size": 1,
        "local_rank": 0,
    }
    return DictDefault(keys | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"world_size": 2, "micro_batch_size": 2},
        {"micro_batch_size": 1, "gradient_accumulation_steps": 8},
        {"seed": 2, "auto_resume_from_checkpoints": False},
    ],
)
def test_what_is_safe_goes_on(tmp_path: Path, changes: dict[str, Any]) -> None:
    prepare_resuming(resumed(tmp_path, **changes), CONFIG)


ZERO = json.dumps({"zero_optimization": {"stage": 2}})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 2}, "resume: seed was 1 and is 2;"),
        ({"base_model": "two"}, "resume: base_model was one and is two;"),
        ({"sequence_len": 64}, "resume: sequence_len was 128 and is 64;"),
        (
            {"world_size": 2},
            "resume: the global batch (micro_batch_size × gradient_accumulation_steps × "
            "processes) was 8 and is 16;",
        ),
        (
            {"world_size": 2, "micro_batch_size": 2, "deepspeed": ZERO},
            "resume: the number of processes was 1 and is 2; DeepSpeed's checkpoints",
        ),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_what_is_not_is_one_sentence(
    tmp_path: Path, changes: dict[str, Any], sentence: str, named: bool
) -> None:
    cfg = resumed(tmp_path, **changes)
    if named:
        cfg["auto_resume_from_checkpoints"] = False
        cfg["resume_from_checkpoint"] = str(tmp_path / "checkpoint-8")
    with pytest.raises(SeraConfigError) as caught:
        prepare_resuming(cfg, CONFIG)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_changed_block_is_named_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(SeraConfigError, match=r"sera\.ensemble was 0\.3 and is 0\.5;"):
        prepare_resuming(resumed(tmp_path), SeraConfig(ensemble=0.5))


def test_a_checkpoint_with_a_model_alone_is_refused(tmp_path: Path) -> None:
    cfg = resumed(tmp_path)
    (tmp_path / "checkpoint-8/rng_state.pth").unlink()
    with pytest.raises(SeraConfigError, match="checkpoint-8 holds a model alone, as save_only_m"):
        prepare_resuming(cfg, CONFIG)


def test_without_a_checkpoint_nothing_is_compared(tmp_path: Path) -> None:
    cfg = resumed(tmp_path, seed=2)
    (tmp_path / "checkpoint-8/trainer_state.json").unlink()
    prepare_resuming(cfg, CONFIG)
    assert (tmp_path / "unfinished-checkpoint-8").is_dir()


@pytest.mark.parametrize("key", ["auto_resume_from_checkpoints", "resume_from_checkpoint"])
def test_save_only_model_beside_a_key_of_resuming_is_refused(key: str) -> None:
    cfg = DictDefault({"rl": "dpo", "num_epochs": 3, "save_only_model": True})
    check_config(cfg, CONFIG)
    with pytest.raises(SeraConfigError, match=rf"save_only_model: true can't be used with {key}: "):
        check_config(cfg | DictDefault({key: True}), CONFIG)
