"""The task with a known reward: its prompts, reward, pairs, and what is said of its runs."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from benchmarks.smollm import sentiment, task_report
from benchmarks.smollm.sentiment import pair_of, pairs_of, prompts, repeats, reward
from benchmarks.smollm.task import append, parts, stored
from benchmarks.smollm.task_train import Task, config_of


def cheer(text: str) -> float:
    """Good words less bad ones, over all words."""
    words = text.split()
    return (words.count("good") - words.count("bad")) / len(words)


def line(
    answers: list[str], finished: list[bool], held_out: bool = False, key: str = "k"
) -> dict[str, Any]:
    return {
        "key": key,
        "prompt": "ask",
        "held_out": held_out,
        "answers": answers,
        "finished": finished,
        "tokens": [len(text.split()) + 1 for text in answers],
        "fluency": [-1.0] * len(answers),
    }


def test_prompts_are_apart_enough_and_the_same_every_time() -> None:
    found = prompts(0)
    assert prompts(0) == found
    assert len({one.text for one in found}) == len({one.key for one in found}) == len(found)
    held = sum(one.held_out for one in found)
    # Nine in ten must give a pair.
    assert 0.9 * held > 512
    assert 0.9 * (len(found) - held) > 1000
    assert [one.text for one in prompts(1)] != [one.text for one in found]


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0.0), ("one two", 0.0), ("a b c d", 0.0), ("A b c a b c", 0.25), ("x x x x x", 2 / 3)],
)
def test_repeats(text: str, share: float) -> None:
    assert repeats(text) == pytest.approx(share)


def test_reward_is_the_sum_of_its_parts() -> None:
    plain = reward("a good day", -1.0, -2.0, cheer)
    assert (plain.sentiment, plain.disfluency, plain.repeats) == (1 / 3, 0.0, 0.0)
    odd = reward("good good good good", -2.5, -2.0, cheer)
    assert odd.value == pytest.approx(1 - 0.5 - 0.5)


def test_a_pair_is_best_against_worst_of_the_finished_answers() -> None:
    texts = ["a bad day", "a day", "a good day", "good good"]
    found = pair_of(line(texts, [True, True, True, False]), -2.0, cheer)
    assert found is not None
    assert (found.chosen, found.rejected) == ("a good day", "a bad day")
    assert found.gap == pytest.approx(2 / 3)
    assert found.tokens == (4, 4)
    row = found.row()
    assert row["conversation"] == [{"role": "user", "content": "ask"}]
    assert row["rejected"] == {"role": "assistant", "content": "a bad day"}


@pytest.mark.parametrize(
    ("texts", "finished"),
    [
        (["good day", "bad day"], [True, False]),
        (["a day", "one day"], [True, True]),
        (["good day", "bad day"], [False, False]),
    ],
)
def test_no_pair_of_cut_or_of_equal_answers(texts: list[str], finished: list[bool]) -> None:
    assert pair_of(line(texts, finished), -2.0, cheer) is None


def test_the_floor_is_that_of_training_prompts_alone() -> None:
    lines = [line(["good day", "bad day"], [True, True], key=str(n)) for n in range(10)]
    out = line(["good day", "bad day"], [True, True], held_out=True, key="out")
    out["fluency"] = [-50.0, -50.0]
    floor, train, held = pairs_of([*lines, out], cheer)
    assert floor == -1.0
    assert ([pair.key for pair in train], len(held)) == ([str(n) for n in range(10)], 1)
    # The answers of the held-out prompt are far below it, and both alike.
    assert held[0].gap == pytest.approx(1.0)


def run(right: float, gain: float, rate: float = 5e-5, pairs: int = 1000) -> dict[str, Any]:
    """A stored run: the share of held-out pairs that is right, and what the reward gains."""
    draw = np.random.default_rng(int(1000 * right))
    order = draw.permutation(np.where(np.arange(256) < 256 * right, 1.0, -1.0))
    before = draw.normal(0, 0.5, (256, 2))
    numbers = dict.fromkeys(("sentiment", "disfluency", "repeats", "finished", "tokens"))
    return {
        "rate": rate, "pairs": pairs, "epochs": 1, "seed": 0, "floor": -2.0, "date": "2030-01-01",
        "margins": [*order, *order], "longer": [0, 1] * 256,
        "before": {"value": before.tolist()} | {key: [[0.5, 0.5]] for key in numbers},
        "after": {"value": (before + gain + draw.normal(0, 0.1, (256, 2))).tolist()}
        | {key: [[0.5, 0.5]] for key in numbers},
        "examples": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("right", "gain", "go"),
    [(0.7, 0.1, True), (0.55, 0.1, False), (0.7, 0.0, False), (0.7, -0.2, False)],
)
def test_a_go_takes_accuracy_and_reward(right: float, gain: float, go: bool) -> None:
    made = run(right, gain)
    assert task_report.is_go(made) == go
    said = task_report.verdict([made])
    assert said.startswith("**Go**" if go else "**No go")
    assert f"{right:.2f}".lstrip("0") in said


def test_the_first_half_chooses_and_the_second_is_reported() -> None:
    one, two = run(0.7, 0.1, rate=2e-5), run(0.8, 0.1, rate=1e-4)
    two["margins"] = [*two["margins"][:256], *[-1.0] * 256]
    said = task_report.verdict([one, two])
    assert "0.0001" in said
    assert said.startswith("**No go")


def test_the_reward_of_answers_that_ended_by_themselves() -> None:
    found = {"value": [[1.0, 0.0], [0.5, -1.0]], "finished": [[1.0, 0.0], [1.0, 0.0]]}
    assert task_report.finished_alone(found) == 0.75
    assert np.isnan(task_report.finished_alone(found | {"finished": [[0.0, 0.0]] * 2}))


def test_a_small_trial_gives_no_verdict() -> None:
    assert task_report.verdict([run(0.9, 1.0, pairs=16)]).startswith("**No verdict")


@pytest.mark.skipif(torch.cuda.is_available(), reason="bf16 is the host's own on a GPU")
def test_bf16_on_a_cpu_takes_the_plugin(tmp_path: Path) -> None:
    """The run's YAML names it, and transformers refuses bf16 on a CPU without its argument."""
    task = Task(tmp_path, tmp_path, tmp_path, 8, 8, 1, 0, end=0.0)
    config = config_of(task, tmp_path / "train.jsonl", tmp_path, {}, {})
    module, _, name = config["plugins"][-1].rpartition(".")
    given = getattr(import_module(module), name)().get_training_args(config)
    assert config["bf16"]
    made = TrainingArguments(output_dir=str(tmp_path), bf16=True, report_to=[], **given)
    assert made.device.type == "cpu"
    with pytest.raises(ValueError, match="use_cpu"):
        TrainingArguments(output_dir=str(tmp_path), bf16=True, report_to=[])


def test_the_page_says_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_report, "vader", lambda packages: cheer)
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- sentiment: begin -->\nold\n<!-- sentiment: end -->\nbelow\n")
    task_report.write_page(tmp_path, page, tmp_path)
    assert "Nothing is stored yet." in page.read_text()
    lines = [line(["good day", "bad day"], [True, True], key=str(n)) for n in range(4)]
    append(tmp_path / "sentiment-samples.jsonl", lines)
    append(tmp_path / "sentiment-runs.jsonl", [run(0.7, 0.1), run(0.6, 0.0, rate=2e-5)])
    task_report.write_page(tmp_path, page, tmp_path)
    said = page.read_text()
    assert "4 prompts are sampled, 100% of their answers finished" in said
    assert "| 5e-05 | .70 [" in said
    assert "**Go**" in said
    assert said.startswith("above\n")
    assert said.endswith("below\n")
    assert "old" not in said


def test_parts_of_stored_answers_and_lines_come_back(tmp_path: Path) -> None:
    made = [line(["good day", "x x x x x"], [True, False])]
    append(tmp_path / "lines.jsonl", made)
    append(tmp_path / "lines.jsonl", made)
    assert stored(tmp_path / "lines.jsonl") == made * 2
    found = parts(made, -0.5, cheer)
    assert found["sentiment"] == [[0.5, 0.0]]
    assert found["disfluency"] == [[0.5, 0.5]]
    assert found["repeats"] == [[0.0, 0.6667]]
    assert found["value"] == [[0.0, pytest.approx(-1.1667)]]
    assert found["finished"] == [[1.0, 0.0]]
    assert json.dumps(found)


def test_without_the_package_of_the_reward_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vaderSentiment", None)
    with pytest.raises(SystemExit, match="make smollm-task"):
        sentiment.vader(tmp_path)
