"""The contrast of quality prompts: by hand, against a slow loop, and where it is refused."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pytest
import slow_reference as slow
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_plugin.config import parse_block
from sera_plugin.config.bootstrap import BootstrapConfig
from sera_plugin.config.contrast import BUILT_IN, ContrastConfig, ContrastPrompts
from sera_plugin.data.candidates import Candidate, Pool, Prompt, Source
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.review.contrast_judge import ContrastJudge
from sera_plugin.review.judges import JudgeParts, court_of
from sera_plugin.review.judging import Court
from sera_plugin.runtime.errors import JudgeError, SeraConfigError
from sera_plugin.runtime.shards import Origin
from sera_plugin.scoring.contrast import Contrast, combined
from sera_plugin.scoring.quality_prompt import opposite_texts
from sera_plugin.scoring.scorer import Scorer, inference

PAIRS = 4
GOOD, BAD = "be brave and kind", "be a coward"


def test_contrasts_are_scaled_and_averaged() -> None:
    one, other = np.array([3.0, -4.0, np.nan]), np.array([0.6, 0.8, 1.0])
    assert combined([one]) is one
    found = combined([one, other])
    first, second = np.sqrt(12.5), np.sqrt((0.36 + 0.64 + 1) / 3)
    assert found[:2].tolist() == pytest.approx(
        [(3 / first + 0.6 / second) / 2, (-4 / first + 0.8 / second) / 2]
    )
    assert np.isnan(found[2])


class OneModel:
    """A reference, ready to score."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._model, self._folder = model, folder

    @contextmanager
    def reference(self) -> Any:
        with inference(self._model):
            yield self._model

    def reference_origin(self, label: str) -> Origin:
        return Origin(self._folder, label, "reference")


@pytest.fixture(scope="module")
def words(llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(llama)


@pytest.fixture(scope="module")
def model(llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(llama).eval()


@pytest.fixture(scope="module")
def data(words: Any) -> Dataset:
    rows = []
    for row in assets.pairs(PAIRS):
        texts = {
            "prompt": slow.llama_text(row["messages"]),
            "chosen": slow.llama_answer(row["chosen"]["content"]),
            "rejected": slow.llama_answer(row["rejected"]["content"]),
        }
        ids = {
            f"{name}_ids": words(text, add_special_tokens=False)["input_ids"]
            for name, text in texts.items()
        }
        rows.append(texts | ids)
    return Dataset.from_list(rows)


@pytest.fixture
def contrast_of(words: Any, model: Any, data: Dataset, tmp_path: Path) -> Any:
    """``contrast_of(max_length, **keys)``: what measures contrasts."""

    def measure_of(max_length: int = 128, **keys: Any) -> Contrast:
        policies: Any = OneModel(model, tmp_path / "work")
        return Contrast(
            config=ContrastConfig(**keys),
            pairs=OfflinePairs.of(data, max_length),
            dataset=data,
            tokenizer=words,
            templates=[words.chat_template],
            scorer=Scorer(Accelerator(cpu=True), 0, max_length, 2048),
            policies=policies,
            max_length=max_length,
        )

    return measure_of


@pytest.fixture
def measure(contrast_of: Any, data: Dataset, alone: np.ndarray) -> Any:
    """``measure(max_length, **keys)``: the contrast of the pairs."""

    def measured(max_length: int = 128, **keys: Any) -> np.ndarray:
        found = contrast_of(max_length, **keys)
        return np.asarray(found.measured(PairLogps(found.pairs.ids, *alone.T)))

    return measured


@pytest.fixture
def alone(words: Any, model: Any, data: Dataset) -> np.ndarray:
    """Log-probs of both answers behind x."""
    return np.asarray(behind(words, model, data, None, per_token=False))


def behind(words: Any, model: Any, data: Dataset, told: str | None, *, per_token: bool) -> Any:
    """Log-probs of both answers behind a system message, one token after the other."""
    found = []
    for messages, row in zip([row["messages"] for row in assets.pairs(PAIRS)], data, strict=True):
        system = [{"role": "system", "content": told}] if told else []
        prompt = words(slow.llama_text([*system, *messages]), add_special_tokens=False)
        sides = (row["chosen_ids"], row["rejected_ids"])
        found.append(
            [
                slow.logp(model, prompt["input_ids"], ids) / (len(ids) if per_token else 1)
                for ids in sides
            ]
        )
    return np.array(found)


@pytest.mark.parametrize("negative", [BAD, None])
@pytest.mark.parametrize("normalize", ["length", "none"])
def test_contrast_equals_a_plain_loop(
    measure: Any, words: Any, model: Any, data: Dataset, negative: str | None, normalize: str
) -> None:
    asked = ContrastPrompts(positive=GOOD, negative=negative, placement="system")
    found = measure(prompts=[asked], normalize=normalize)
    per_token = normalize == "length"
    raised = behind(words, model, data, GOOD, per_token=per_token) - behind(
        words, model, data, negative, per_token=per_token
    )
    assert found == pytest.approx(raised[:, 0] - raised[:, 1], abs=1e-4)
    assert np.abs(found).max() > 1e-3, "the prompts change nothing; nothing is tested"


def test_pairs_without_room_have_no_contrast(measure: Any, data: Dataset) -> None:
    asked = [ContrastPrompts(positive=GOOD * 3, negative=None)]
    longest = max(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in data
    )
    found = measure(longest + 1, prompts=asked)
    assert np.isnan(found).any()


def pools_of(found: Contrast, alone: np.ndarray) -> list[Pool]:
    """The answers of D as candidates, those of the last pair first."""
    pools = []
    for row, example_id in reversed(list(enumerate(found.pairs.ids))):
        pair = found.pairs.dataset[row]
        candidates = [
            Candidate(
                tuple(pair[f"{source.value.removeprefix('offline_')}_ids"]),
                source,
                True,
                0.0,
                0.0,
                logp,
            )
            for source, logp in zip((Source.CHOSEN, Source.REJECTED), alone[row], strict=True)
        ]
        pools.append(Pool(example_id, tuple(candidates)))
    return pools


@pytest.mark.parametrize("negative", [BAD, None])
def test_the_judge_scores_answers_as_the_signal_does(
    contrast_of: Any, measure: Any, alone: np.ndarray, negative: str | None
) -> None:
    keys = {"prompts": [ContrastPrompts(positive=GOOD, negative=negative, placement="system")]}
    found = contrast_of(**keys)
    scores = np.array(ContrastJudge(found).of_pools(pools_of(found, alone), "round-01"))
    apart = scores.reshape(-1, 2)[::-1]
    assert apart[:, 0] - apart[:, 1] == pytest.approx(measure(**keys), abs=1e-5)
    assert np.abs(apart[:, 0] - apart[:, 1]).max() > 1e-3


def test_several_prompts_are_scaled_by_how_far_they_tell_answers_of_a_prompt_apart(
    contrast_of: Any, alone: np.ndarray
) -> None:
    asked = [
        ContrastPrompts(positive=GOOD, negative=None),
        ContrastPrompts(positive=BAD, negative=GOOD, placement="system"),
    ]
    pools = pools_of(contrast_of(), alone)
    one, other, both = (
        contrast_of(prompts=prompts).of_pools(pools, "round-01")
        for prompts in (asked[:1], asked[1:], asked)
    )
    expected = 0
    for values in (one, other):
        pairs = values.reshape(-1, 2)
        scale = np.sqrt(np.mean(((pairs[:, 0] - pairs[:, 1]) / 2) ** 2))
        expected = expected + values / scale / 2
    assert both == pytest.approx(expected)


def test_an_answer_without_room_for_the_prompt_has_no_score(
    contrast_of: Any, alone: np.ndarray
) -> None:
    prompts = [ContrastPrompts(positive=GOOD, negative=None)]
    wide = contrast_of(prompts=prompts)
    pools = pools_of(wide, alone)
    usual = wide.pairs.prompt_tokens
    added = round(wide.asked_tokens()[0] - usual.mean())
    assert added > 3
    lengths = [
        usual[wide.pairs.position[pool.example_id]] + added + len(candidate.token_ids)
        for pool in pools
        for candidate in pool.candidates
    ]
    most = int(sorted(lengths)[3])
    tight = contrast_of(most, prompts=prompts)
    scores = ContrastJudge(tight).of_pools(pools, "round-01")
    assert [score is not None for score in scores] == [length <= most for length in lengths]
    court = Court(Accelerator(cpu=True), ContrastJudge(tight), Path("unused"), True)
    asked = [Prompt(pool.example_id, (1,)) for pool in pools]
    left = court.pools(pools, asked, "round-01")
    assert sum(len(pool.candidates) for pool in left) == sum(n <= most for n in lengths)
    none = Court(
        Accelerator(cpu=True), ContrastJudge(contrast_of(2, prompts=prompts)), Path("unused"), True
    )
    with pytest.raises(JudgeError, match=r"judge: contrast has no opinion on any of the 8 answers"):
        none.pools(pools, asked, "round-01")


def test_what_the_judge_has_scored_is_not_scored_again(
    contrast_of: Any, alone: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = contrast_of()
    pools = pools_of(found, alone)
    scores = found.of_pools(pools, "round-01")

    def fails(*args: Any, **rest: Any) -> Any:
        raise AssertionError("scored again")

    monkeypatch.setattr(Scorer, "own_logps", fails)
    assert found.of_pools(pools, "round-01").tolist() == scores.tolist()
    with pytest.raises(AssertionError, match="scored again"):
        found.of_pools(pools[1:], "round-01")


def test_the_court_of_a_run_is_the_contrast(contrast_of: Any, tmp_path: Path) -> None:
    tokenizer: Any = None
    block = BootstrapConfig(judge="contrast", judge_mode="agree")
    parts = JudgeParts(block, tokenizer, Accelerator(cpu=True), contrast_of())
    court = court_of(parts, tmp_path, lambda: None)
    assert court is not None
    assert isinstance(court.judge, ContrastJudge)
    assert not court.replaces


def test_built_in_prompts_ask_for_opposite_things() -> None:
    for asked in BUILT_IN:
        positive, negative = opposite_texts(asked)
        assert positive
        assert negative
        assert positive != negative


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([{"positive": " "}], "sera.selection.contrast.prompts.positive: ' ' is empty"),
        (
            [{"positive": "be kind", "negative": "none.txt"}],
            "sera.selection.contrast.prompts.negative: 'none.txt' is not a file",
        ),
    ],
)
def test_bad_prompts(prompts: Any, words: str) -> None:
    block = {"selection": {"signals": ["contrast"], "contrast": {"prompts": prompts}}}
    config = parse_block(block)
    assert config is not None
    with pytest.raises(SeraConfigError) as error:
        [opposite_texts(asked) for asked in config.selection.asked]
    assert str(error.value).startswith(words)


def test_nothing_is_asked_unless_the_signal_is_named() -> None:
    block = {"selection": {"contrast": {"prompts": [{"positive": "be kind"}]}}}
    config = parse_block(block)
    assert config is not None
    assert config.asked == ()
    judged = parse_block(block | {"bootstrap": {"judge": "contrast"}})
    assert judged is not None
    assert [asked.positive for asked in judged.asked] == ["be kind"]
    assert judged.selection.asked == ()
    assert judged.selection.model_dump()["contrast"]["prompts"][0]["positive"] == "be kind"
    off = parse_block(block | {"bootstrap": {"judge": "contrast", "fraction": 0}})
    assert off is not None
    assert off.asked == ()
