"""A judge of the user's own: its contract, its shards, and how pairs follow from its scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import assets
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sera_plugin.data.candidates import Candidate, Pool, Prompt, Source
from sera_plugin.review.judges import FunctionJudge, RewardModelJudge
from sera_plugin.review.judging import (
    BATCH,
    SHARD_BATCHES,
    Court,
    Question,
    ScoreCodec,
    checked,
)
from sera_plugin.review.pairing import Shortfall, bootstrap
from sera_plugin.runtime.errors import AskedToStop, JudgeError, SeraConfigError
from sera_plugin.runtime.passes import Pass

TEXTS = ["red green blue", "one two three four", "yes no"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assets.save_model(tmp_path_factory.mktemp("judge") / "llama", "llama", TEXTS)


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


def questions_of(tokenizer, count=3):
    return [
        Question(
            f"id-{i}",
            tuple(tokenizer(TEXTS[i % 3], add_special_tokens=False)["input_ids"]),
            (*tokenizer(f"yes {i}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id),
        )
        for i in range(count)
    ]


def by_length(prompts, completions, **rest):
    assert len(prompts) == len(completions)
    assert {"prompt_ids", "completion_ids", "example_ids"} == set(rest)
    return [float(len(text)) for text in completions]


def sees_text(prompts, completions, **rest):
    return [
        1.0 if "</s>" not in c and p in TEXTS else None
        for p, c in zip(prompts, completions, strict=True)
    ]


def too_few(prompts, completions, **rest):
    return [1.0]


def not_a_number(prompts, completions, **rest):
    return [float("nan")] * len(prompts)


def word(prompts, completions, **rest):
    return ["good"] * len(prompts)


def no_opinion(prompts, completions, **rest):
    return [None] * len(prompts)


def raises(prompts, completions, **rest):
    raise ConnectionError("the judge is out")


def judge_of(name, tokenizer):
    return FunctionJudge(f"{__name__}:{name}", tokenizer)


def test_a_function_sees_texts_and_ids(tokenizer):
    scores = checked(judge_of("sees_text", tokenizer), questions_of(tokenizer))
    assert scores == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("too_few", "returned 1 scores for 3 answers"),
        ("not_a_number", "returned 'nan'; a score must be a finite number"),
        ("word", "returned 'good'; a score must be a finite number"),
        (
            "raises",
            r"raised ConnectionError: the judge is out \(.*, line \d+\); the answers judged",
        ),
    ],
)
def test_a_judge_that_breaks_its_contract_is_named(name, words, tokenizer):
    with pytest.raises(JudgeError, match=words) as caught:
        checked(judge_of(name, tokenizer), questions_of(tokenizer))
    assert str(caught.value).startswith(f"sera.bootstrap.judge: {__name__}:{name} ")
    assert "\n" not in str(caught.value)


def test_a_judge_that_is_not_there_is_named(tokenizer):
    with pytest.raises(
        SeraConfigError, match=r"sera\.bootstrap\.judge: nowhere:at_all can't be imported"
    ):
        FunctionJudge("nowhere:at_all", tokenizer)


def test_a_judge_without_any_opinion_is_an_error(tokenizer, tmp_path):
    court = Court(Accelerator(cpu=True), judge_of("no_opinion", tokenizer), tmp_path, True)
    with pytest.raises(JudgeError, match="has no opinion on any of the 3 answers"):
        court.scores(questions_of(tokenizer), "round-02")


class Failing:
    """A judge that works for so many calls."""

    identity = "failing:1"

    def __init__(self, calls):
        self.left = calls
        self.seen = 0

    def __call__(self, questions):
        if self.left == 0:
            raise TimeoutError("gone")
        self.left -= 1
        self.seen += len(questions)
        return [float(sum(q.completion_ids)) for q in questions]


def test_a_judge_that_fails_loses_nothing_that_was_judged(tokenizer, tmp_path):
    questions = questions_of(tokenizer, 7 * BATCH - 3)
    accelerator = Accelerator(cpu=True)
    first = Failing(6)
    with pytest.raises(JudgeError, match="raised TimeoutError: gone"):
        Court(accelerator, first, tmp_path, True).scores(questions, "round-02")
    second = Failing(7)
    scores = Court(accelerator, second, tmp_path, True).scores(questions, "round-02")
    assert scores == [float(sum(q.completion_ids)) for q in questions]
    assert second.seen == len(questions) - 6 * BATCH, "what was judged is judged again"
    other = Failing(7)
    Court(accelerator, other, tmp_path, True).scores(questions[1:], "round-02")
    assert other.seen == len(questions) - 1


def test_a_run_that_is_asked_to_stop_ends_after_the_shard_and_keeps_it(tokenizer, tmp_path):
    questions = questions_of(tokenizer, 7 * BATCH)
    accelerator, first, second = Accelerator(cpu=True), Failing(7), Failing(7)

    def stop():
        raise AskedToStop

    with pytest.raises(AskedToStop):
        Court(accelerator, first, tmp_path, True, stop).scores(questions, "round-02")
    assert first.seen == SHARD_BATCHES * BATCH
    Court(accelerator, second, tmp_path, True).scores(questions, "round-02")
    assert first.seen + second.seen == len(questions)


@pytest.mark.parametrize(("alike", "seen"), [(True, [1, 3, 4]), (False, [1, 3])])
def test_a_rank_without_a_batch_repeats_one_only_if_all_must_compute(alike, seen):
    """The second of two ranks, of five batches in groups of two."""
    rank, computed = SimpleNamespace(num_processes=2, process_index=1, is_main_process=False), []
    found = Pass(
        rank,
        "",
        lambda number: computed.append(number) or [float(number)],
        ScoreCodec(),
        group=1,
        alike=alike,
    ).results(5)
    assert computed == seen
    assert found == {1: [1.0], 3: [3.0]}


@pytest.fixture(scope="module")
def reward_model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assets.save_reward_model(tmp_path_factory.mktemp("judge") / "reward", folder)


def test_a_reward_model_gives_its_own_scores(reward_model, tokenizer):
    questions = questions_of(tokenizer, 5)
    judge = RewardModelJudge(str(reward_model), tokenizer, Accelerator(cpu=True))
    model = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    with torch.no_grad():
        expected = [
            float(model(torch.tensor([[*q.prompt_ids, *q.completion_ids]])).logits[0, 0])
            for q in questions
        ]
    assert checked(judge, questions) == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) > 1


@pytest.mark.parametrize("path", ["/nowhere/at/all", "two"])
def test_a_reward_model_that_can_not_be_used_is_named(path, folder, tokenizer, tmp_path):
    if path == "two":
        path = str(assets.save_reward_model(tmp_path, folder, outputs=2))
    with pytest.raises(JudgeError) as caught:
        RewardModelJudge(path, tokenizer, Accelerator(cpu=True))
    assert str(caught.value).startswith(f"sera.bootstrap.judge: {path} ")
    assert "\n" not in str(caught.value)


def candidate(tokens, source, log_ratio=0.0):
    return Candidate(tuple(tokens), source, True, log_ratio, -1.0, -1.0)


class ByFirstToken:
    """Scores an answer by its first token, with no opinion on those that start with 9."""

    identity = "by-first-token:1"

    def __call__(self, questions):
        firsts = [q.completion_ids[0] for q in questions]
        assert all(q.prompt_ids == (100, int(q.example_id)) for q in questions)
        return [None if first == 9 else float(first) for first in firsts]


@pytest.mark.parametrize(
    ("replaces", "expected"),
    [
        # Scores 5 > 3 > 1; on the second prompt only one answer is left.
        (True, {"1": ((5, 1), (1, 1), 4.0)}),
        # By implicit reward 3 is best and 1 worst, and so says the judge.
        (False, {"1": ((3, 1), (1, 1), 1.0)}),
    ],
)
def test_pairs_follow_the_judge(replaces, expected, tmp_path):
    pools = [
        Pool(
            "1",
            (
                candidate([1, 1], Source.REJECTED, -5.0),
                candidate([3, 1], Source.POLICY, 5.0),
                candidate([5, 1], Source.POLICY, 0.0),
            ),
        ),
        Pool("2", (candidate([9, 1], Source.POLICY, 1.0), candidate([2, 1], Source.CHOSEN, 0.0))),
    ]
    prompts = [Prompt("2", (100, 2)), Prompt("1", (100, 1))]
    court = Court(Accelerator(cpu=True), ByFirstToken(), tmp_path, replaces)
    pairs, short = bootstrap(court.pools(pools, prompts, "round-02"), 0.1, 0.0)
    found = {p.example_id: (p.chosen.token_ids, p.rejected.token_ids, p.margin) for p in pairs}
    assert found == expected
    assert short[Shortfall.DUPLICATES if replaces else Shortfall.UNJUDGED] == 1


def test_a_pair_that_the_judge_orders_otherwise_is_dropped(tmp_path):
    pools = [Pool("1", (candidate([1], Source.POLICY, 5.0), candidate([3], Source.CHOSEN, 0.0)))]
    court = Court(Accelerator(cpu=True), ByFirstToken(), tmp_path, False)
    judged = court.pools(pools, [Prompt("1", (100, 1))], "round-02")
    pairs, short = bootstrap(judged, 0.1, 0.0)
    assert pairs == []
    assert short[Shortfall.DISAGREE] == 1
