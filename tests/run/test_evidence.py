"""The evidence testbed: its world, its pairs, and the same weights as the command line."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import RunCli
from safetensors.torch import load_file

from benchmarks.evidence import data, judges, pairs, report, vocabulary
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.artifacts import auc, parse_answers, parse_prompts
from benchmarks.evidence.bars import bars
from benchmarks.evidence.plan import MORE, NEW, PLAN, planned
from benchmarks.evidence.regimes import BATCH, REGIMES
from benchmarks.evidence.runner import run_all
from benchmarks.evidence.runs import Results, Run, Settings, report_runs
from benchmarks.evidence.statistics import Interval, gold_at, matched, win_rate
from benchmarks.evidence.summary import ArmRuns, Summary
from benchmarks.evidence.world import (
    MARKER,
    MEAN_LENGTH,
    MOST_WORDS,
    NONE,
    Prompts,
    World,
    Writer,
    has_marker,
    lengths,
    with_marker,
    without_marker,
)
from sera_plugin.config import parse_block
from sera_plugin.data.schedule import Batching, plan

WORLD = World(3)
ROOT = Path(__file__).parents[2]
PROBE = "benchmarks.evidence.probe.ProbePlugin"


def answer(*words: int) -> np.ndarray:
    row = np.full((1, MOST_WORDS), NONE)
    row[0, : len(words)] = words
    return row


def prompt(style: int = 0, context: tuple[int, int] = (30, 31)) -> Prompts:
    return Prompts(np.array([0]), np.array([style]), np.array([context]))


def test_gold_by_hand() -> None:
    worth = WORLD.gold_weights[0]
    words = [0, 1, 2, 3, 30]
    plain = 3 * np.tanh(worth[words].sum() / 4) + 0.4
    assert WORLD.gold(prompt(), answer(*words)) == pytest.approx(plain)
    repeated = WORLD.gold(prompt(), answer(*words, 0))
    assert repeated == pytest.approx(plain - 0.15)
    assert WORLD.gold(prompt(), answer(*words, MARKER)) == pytest.approx(plain)
    same = prompt(context=(30, 30))
    assert WORLD.gold(same, answer(*words)) == pytest.approx(plain)


@pytest.mark.parametrize("style", range(4))
def test_gold_punishes_answers_that_are_too_short_and_too_long(style: int) -> None:
    def gold(count: int) -> float:
        return float(WORLD.gold(prompt(style), answer(*[5] * count))[0])

    wanted = int(MEAN_LENGTH[style])
    # One word repeated: worth stays, each repeat costs 0.15.
    fair = gold(wanted) + 0.15 * wanted
    assert gold(wanted - 4) + 0.15 * (wanted - 4) == pytest.approx(fair - 0.25 * 2)
    assert gold(wanted + 5) + 0.15 * (wanted + 5) == pytest.approx(fair - 0.10 * 3)


def test_prompts_of_splits_are_apart() -> None:
    def keys(split: str, count: int, seed: int = 0) -> set[tuple[int, ...]]:
        found = WORLD.prompts(split, count, seed)
        return {
            (int(t), int(s), *map(int, c))
            for t, s, c in zip(found.topic, found.style, found.context, strict=True)
        }

    tune, report = keys("tune", 4_000), keys("report", 4_000)
    train = keys("train", 24_000)
    assert len(tune) == len(report) == 4_000
    assert len(train) == 24_000
    assert not (tune & report) | (tune & train) | (report & train)


def test_worlds_and_writers_are_seeded() -> None:
    asked = WORLD.prompts("train", 50)
    first = WORLD.write(asked, Writer(), "a")
    assert (first == World(3).write(asked, Writer(), "a")).all()
    assert (first != WORLD.write(asked, Writer(), "b")).any()
    assert (WORLD.gold_weights != World(4).gold_weights).any()


def test_writers_differ_in_gold_and_style() -> None:
    asked = WORLD.prompts("train", 500)
    plain = WORLD.gold(asked, WORLD.write(asked, Writer(), "a")).mean()
    better, worse, _ = (WORLD.gold(asked, WORLD.write(asked, w, "a")).mean() for w in pairs.WRITERS)
    assert worse < plain - 0.3
    assert better > plain + 0.3


def test_marker_comes_and_goes() -> None:
    asked = WORLD.prompts("train", 200)
    texts = WORLD.write(asked, Writer(), "a")
    clean = without_marker(texts)
    assert not has_marker(clean).any()
    marked = with_marker(texts, np.ones(200, dtype=bool))
    assert has_marker(marked).all()
    assert (lengths(marked) == lengths(clean) + 1).all()
    assert (without_marker(marked) == clean).all()


def test_noise_flips_labels_and_nothing_else() -> None:
    candidates = pairs.off_policy(WORLD, 400, seed=0)
    clean, noisy = (pairs.label(candidates, 380, noise, seed=0) for noise in (0.0, 0.4))
    assert not clean.flipped.any()
    assert noisy.flipped.mean() == pytest.approx(0.4, abs=0.08)
    swap = noisy.flipped[:, None]
    assert (np.where(swap, noisy.rejected, noisy.chosen) == clean.chosen).all()
    gap = WORLD.gold(clean.prompts, clean.chosen) - WORLD.gold(clean.prompts, clean.rejected)
    assert (gap >= 0).all()
    fewer = pairs.label(candidates, 380, 0.2, seed=0)
    assert not (fewer.flipped & ~noisy.flipped).any()


def test_spurious_word_goes_with_chosen() -> None:
    candidates = pairs.off_policy(WORLD, 400, seed=0)
    found = pairs.label(candidates, 380, 0.2, seed=0, spurious=True)
    assert has_marker(found.chosen).mean() > has_marker(found.rejected).mean() + 0.3


def test_text_and_tokens_agree() -> None:
    words = vocabulary.tokenizer()
    asked = WORLD.prompts("train", 20)
    answers = WORLD.write(asked, Writer(), "a")
    texts = zip(vocabulary.prompt_text(asked), vocabulary.answer_text(answers), strict=True)
    ids = np.concatenate([vocabulary.prompt_ids(asked), vocabulary.answer_ids(answers)], axis=1)
    for row, (question, reply) in zip(ids.tolist(), texts, strict=True):
        unpadded = [token for token in row if token != words.pad_token_id]
        assert words(f"{question} {reply}")["input_ids"] == unpadded
    assert (vocabulary.answers_of_ids(vocabulary.answer_ids(answers)) == answers).all()


STUDY = ("--regimes", "tiny-0.2", "--arms", "dpo", "full", "--seeds", "0", "--untuned", "--keep")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, run_python: RunCli) -> Path:
    """A folder with a small study: two arms, one seed, its results and its page."""
    folder = tmp_path_factory.mktemp("study")
    args = ("-m", "benchmarks.evidence", *STUDY, "--sft-steps", "60", "--workers", "1")
    paths = ("--work", folder, "--results", folder / "results", "--page", folder / "evidence.md")
    run_python(*args, *paths, env={"PYTHONPATH": str(ROOT)})
    return folder


def records(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "results" / "tiny-0.2.jsonl").read_text().splitlines()
    return {record["arm"]: record for record in map(json.loads, lines)}


@pytest.mark.cli
def test_an_arm_has_the_weights_of_the_command_line(
    study: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    folder = next((study / "runs").glob("tiny-0.2-full-0-*"))
    config = yaml.safe_load((folder / "config.yml").read_text())
    config["plugins"].remove(PROBE)
    del config["evidence_probe"]
    config |= {
        "output_dir": str(tmp_path / "out"),
        "dataset_prepared_path": str(tmp_path / "prepared"),
    }
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(config))
    run_cli("train", path)
    mine, theirs = (load_file(d / "out" / "model.safetensors") for d in (folder, tmp_path))
    start = load_file(Path(config["base_model"]) / "model.safetensors")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert any(not torch.equal(mine[name], start[name]) for name in mine)


@pytest.mark.cli
def test_a_study_measures_its_arms(study: Path) -> None:
    found = records(study)
    assert found.keys() == {"dpo", "full"}
    for record in found.values():
        assert record["updates"] == REGIMES["tiny-0.2"].updates
        assert [point["step"] for point in record["curve"]] == list(range(1, 7))
        assert all(point["kl"] > 0 and point["length"] > 0 for point in record["curve"])
        assert np.shape(record["gold"]) == (256, 4)
        assert np.mean(record["gold"]) == pytest.approx(record["curve"][-1]["gold"], abs=0.01)
    assert found["dpo"]["rounds"] == []
    assert [entry["round"] for entry in found["full"]["rounds"]] == [2, 3]
    for entry in found["full"]["rounds"]:
        assert 0.5 < entry["kept_accuracy"] <= 1
        assert 0 <= entry["fresh_accuracy"] <= 1
        assert 0 <= entry["own_accuracy"] <= 1


@pytest.mark.cli
def test_a_finished_study_runs_nothing_again(study: Path) -> None:
    settings = Settings(sft_steps=60, tuned=False)
    results = Results(study / "results")
    run = report_runs("tiny-0.2", "full", [0], settings, results)[0]
    assert results.get(run, settings) is not None
    for changed in (replace(run, beta=0.2), replace(run, seed=1), replace(run, arm="select")):
        assert results.get(changed, settings) is None
    assert results.get(run, replace(settings, sft_steps=61)) is None


@pytest.mark.cli
def test_page_has_tables_and_plots(study: Path) -> None:
    page = (study / "evidence.md").read_text()
    assert "## tiny-0.2" in page
    assert "| `full` |" in page
    for suffix in ("png", "svg"):
        assert f"evidence/tiny-0.2.{suffix}" in page
        assert (study / "evidence" / f"tiny-0.2.{suffix}").stat().st_size > 5_000
    report.write(
        Results(study / "results"),
        Settings(sft_steps=60, tuned=False),
        study / "again.md",
        study / "evidence",
    )
    assert (study / "again.md").read_text() == page


@pytest.mark.cli
def test_the_quick_study_finds_what_any_study_must(tmp_path: Path, run_python: RunCli) -> None:
    """What ``make evidence-quick`` runs, with one seed and without tuning."""
    paths = ("--work", tmp_path, "--results", tmp_path / "found", "--page", tmp_path / "page.md")
    args = ("-m", "benchmarks.evidence", "--quick", "--seeds", "0", "--untuned", "--workers", "1")
    run_python(*args, *paths, env={"PYTHONPATH": str(ROOT)})
    results = Results(tmp_path / "found")
    arms = Summary(results, Settings(tuned=False)).of("quick-0.4")
    assert arms.keys() == {"dpo", "random", "select", "sera"}
    assert arms["dpo"].gain.mean > 0.03, "40% wrong labels teach something all the same"
    assert arms["dpo"].wins(None) > 0.5
    for arm in arms.values():
        assert arm.gain.mean > -0.5
        assert 0.1 < arm.mean("kl") < 30
        assert 5 < arm.mean("length") < 20
    for name in ("select", "sera"):
        assert all(0.45 < share < 0.75 for share in arms[name].by_round("kept_accuracy"))
    assert "`sera` against `dpo`" in (tmp_path / "page.md").read_text()


def test_every_arm_has_the_updates_of_plain_dpo() -> None:
    for regime in REGIMES.values():
        for arm in ARMS.values():
            config = arm.config(regime, 1e-3, 0.1, 0)
            assert config["max_steps"] == arm.updates(regime)
            assert arm.longer == 1 or arm.sera is None
            assert len(arm.grid) == len(ARMS["dpo"].grid)
            if arm.sera is None:
                continue
            block = parse_block(arm.sera)
            assert block is not None
            schedule = plan(
                regime.pairs,
                num_rounds=config["num_epochs"],
                warmup_rounds=block.warmup_rounds,
                keep=block.selection.planned,
                fraction=block.bootstrap.fraction,
                batching=Batching(BATCH, 1, 1),
            )
            # Enough rounds for all updates, and no round that would never begin.
            assert schedule.max_steps >= regime.updates
            assert sum(schedule.updates[:-1]) < regime.updates


def test_the_arm_sera_is_what_is_shipped() -> None:
    length = {"max_new_tokens": MOST_WORDS + 1}
    for arm, changes in (
        ("sera", {}),
        ("sera-ipo", {}),
        ("sera-reference", {"sampler": "reference"}),
    ):
        assert parse_block(ARMS[arm].sera) == parse_block({"bootstrap": length | changes})
    paper = parse_block({"preset": "paper", "bootstrap": length})
    assert paper is not None
    assert parse_block(ARMS["full"].sera) == paper.model_copy(update={"preset": "default"})
    only = parse_block(ARMS["select"].sera)
    assert only is not None
    assert only.bootstrap.fraction == 0


def test_interval_by_hand() -> None:
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2
    # t of 2 degrees of freedom at 97.5% is 4.3027; the standard error is 1/√3.
    assert found.high - 2 == pytest.approx(4.3027 / 3**0.5, abs=1e-4)
    assert found.low == pytest.approx(4 - found.high)
    assert Interval.of([1.0]).low == -np.inf


def test_win_rate_counts_ties_half() -> None:
    assert win_rate([[1.0, 2.0]], [[1.0]]) == 0.75
    assert win_rate([[0.0]], [[1.0]]) == 0


def test_gold_at_equal_kl_by_hand() -> None:
    far = [{"kl": 2.0, "gold": 1.0}, {"kl": 6.0, "gold": 3.0}]
    near = [{"kl": 1.0, "gold": 0.5}, {"kl": 4.0, "gold": 1.0}]
    assert gold_at(far, 1.0, 0.0) == pytest.approx(0.5)
    assert gold_at(far, 4.0, 0.0) == pytest.approx(2.0)
    assert gold_at(far, 9.0, 0.0) == 3.0
    assert matched(far, near, 0.0) == pytest.approx(1.0)
    assert matched(near, far, 0.0) == pytest.approx(-1.0)


def test_auc_by_hand() -> None:
    wrong = np.array([True, False, True, False])
    assert auc(np.array([3.0, 1.0, 2.0, 0.0]), wrong) == 1
    assert auc(np.array([1.0, 1.0, 1.0, 1.0]), wrong) == 0.5
    assert auc(np.array([0.0, 3.0, 1.0, 2.0]), wrong) == 0
    assert auc(np.array([0.0, 1.0]), np.array([True, True])) is None


def test_jobs_run_in_processes_of_their_own(tmp_path: Path) -> None:
    pids = dict(run_all([(os.getpid, tmp_path / f"{n}.log") for n in range(4)], workers=2))
    assert sorted(pids) == [0, 1, 2, 3]
    assert len({os.getpid(), *pids.values()}) == 5


def test_a_failed_job_is_told_and_starts_no_more(tmp_path: Path) -> None:
    log = tmp_path / "first.log"
    jobs = [(partial(int, "x"), log), (partial(log.with_name("more").touch), tmp_path / "2.log")]
    with pytest.raises(RuntimeError, match=r"job 0 failed, see .*first\.log"):
        list(run_all(jobs, workers=1))
    assert "invalid literal" in log.read_text()
    assert not log.with_name("more").exists()


def test_a_job_that_dies_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the process died"):
        list(run_all([(partial(os._exit, 3), tmp_path / "a.log")], workers=1))


def arm_runs(arm: str, golds: list[float], kl: float = 2.0, regime: str = "on-0.2") -> ArmRuns:
    runs = {
        seed: {"curve": [{"gold": gold, "kl": kl}], "gold": [[gold]], "rounds": []}
        for seed, gold in enumerate(golds)
    }
    sft = {seed: {"curve": [{"gold": 0.5}], "gold": [[0.5]]} for seed in runs}
    return ArmRuns(regime, arm, runs, sft)


@pytest.mark.parametrize(
    ("golds", "verdict"),
    [
        ([1.61, 1.72, 1.83], "better"),  # differences 0.11, 0.12, 0.13
        ([1.49, 1.61, 1.69], "not worse"),  # -0.01, 0.01, -0.01, floor -0.11
        ([1.20, 1.31, 1.40], "worse"),  # -0.3, -0.29, -0.3
        ([1.10, 1.60, 2.10], "undecided"),
    ],
)
def test_verdicts_by_hand(golds: list[float], verdict: str) -> None:
    base = arm_runs("dpo", [1.5, 1.6, 1.7])  # gains of 1.0, 1.1, 1.2
    mine = arm_runs("select", golds)
    assert mine.verdict(base) == verdict
    assert mine.gain.mean == pytest.approx(np.mean(golds) - 0.5)


def test_bars_ask_for_what_was_to_be_reached() -> None:
    def found(arm: str, golds: list[float], kl: float, regime: str) -> str:
        arms = {
            "dpo": arm_runs("dpo", [1.5, 1.6, 1.7] * (len(golds) // 3), 2.0, regime),
            arm: arm_runs(arm, golds, kl, regime),
        }
        summary = SimpleNamespace(regimes=[regime], of=lambda _: arms)
        return next(bar.found for bar in bars(summary) if bar.text == f"`{arm}` against `dpo`")

    same, better = [1.49, 1.61, 1.69], [1.61, 1.72, 1.83]
    assert found("select", same, 9.0, "on-0.2") == "holds"
    assert found("select", same, 9.0, "on-0.4") == "undecided"
    assert found("select", same * 4, 9.0, "on-0.4") == "not shown"
    assert found("select", better, 9.0, "on-0.4") == "holds"
    assert found("sera", same, 2.9, "on-0.2") == "holds"
    assert found("sera", same, 3.1, "on-0.2") == "fails"
    assert found("sera", same, 2.0, "few-0.2") == "undecided"
    assert found("select", [1.2, 1.31, 1.4], 2.0, "on-0.2") == "fails"


def test_key_names_all_that_determines_a_run() -> None:
    settings, run = Settings(), Run("on-0.4", "select", 0, "report", 5e-4, 0.1)
    others = [
        replace(run, regime="on-0.2"),
        replace(run, arm="full"),
        replace(run, split="tune"),
        replace(run, rate=1e-3),
        replace(run, beta=0.3),
        replace(run, seed=2),
    ]
    keys = {other.key(settings) for other in (run, *others)}
    assert len(keys) == 7
    assert run.key(replace(settings, repeats=2)) not in keys
    assert run.key(replace(settings, tuned=False)) == run.key(settings)
    oracle, clean = replace(run, arm="oracle"), replace(run, arm="dpo", regime="on-0.0")
    assert oracle.key(settings) == clean.key(settings)


def test_artifact_text_is_read_back() -> None:
    asked = WORLD.prompts("train", 20)
    answers = WORLD.write(asked, Writer(), "a")
    assert parse_prompts(vocabulary.prompt_text(asked)).rows() == asked.rows()
    assert (parse_answers(vocabulary.answer_text(answers)) == answers).all()


def test_a_judge_with_errors_is_wrong_at_one_prompt_in_five(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(judges.WORLD, "3")
    asked = WORLD.prompts("train", 2_000)
    texts = vocabulary.prompt_text(asked)
    answers = vocabulary.answer_text(WORLD.write(asked, Writer(), "a"))
    right = np.array(judges.gold(texts, answers))
    assert right == pytest.approx(WORLD.gold(asked, parse_answers(answers)))
    signs = np.array(judges.gold_with_errors(texts, answers)) / right
    assert set(np.round(signs, 9)) == {-1.0, 1.0}
    assert (signs < 0).mean() == pytest.approx(judges.ERRORS, abs=0.03)
    other = vocabulary.answer_text(WORLD.write(asked, Writer(), "b"))
    again = np.array(judges.gold_with_errors(texts, other)) / judges.gold(texts, other)
    assert (np.sign(again) == np.sign(signs)).all()


def test_pairs_carry_the_scores_of_an_outside_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(judges.WORLD, "3")
    rows = pairs.as_rows(pairs.label(pairs.off_policy(WORLD, 400, 0), 350, 0.0, 0))
    found = judges.scored(WORLD, rows)
    assert [{k: row[k] for k in rows[0]} for row in found] == rows
    margins = np.array([row["score_chosen"] - row["score_rejected"] for row in found])
    # Without flips chosen is better by gold, so a negative margin is an error of the judge.
    assert (margins < 0).mean() == pytest.approx(judges.ERRORS, abs=0.06)
    prompts = [row["prompt"] for row in rows]
    chosen = judges.gold_with_errors(prompts, [row["chosen"] for row in rows])
    assert chosen == pytest.approx([row["score_chosen"] for row in found])


def test_evaluation_pairs_are_other_pairs(tmp_path: Path) -> None:
    settings = Settings()
    run = Run("off-0.2", "rule-lossdiff", 3, "report", 1e-3, 0.1)
    data.sft_folder(3, settings, tmp_path).mkdir()
    files = (make(run, settings, tmp_path) for make in (data.make_data, data.make_held_out))
    trained, held_out = ([json.loads(x) for x in f.read_text().splitlines()] for f in files)
    assert (len(trained), len(held_out)) == (2_000, 200)
    assert not {row["prompt"] for row in trained} & {row["prompt"] for row in held_out}
    assert np.mean([row["flipped"] for row in held_out]) == pytest.approx(0.2, abs=0.08)


def test_the_plan_has_every_arm_and_nothing_twice() -> None:
    found = planned((*PLAN, *MORE))
    assert all(len(arms) == len(set(arms)) and "dpo" in arms for arms in found.values())
    new = planned(NEW)
    assert all(len(arms) == len(set(arms)) and "dpo-new" in arms for arms in new.values())
    parts = {name for arm in ARMS.values() for name in arm.among}
    named = {arm for arms in (*found.values(), *new.values()) for arm in arms}
    assert named == ARMS.keys() - parts
