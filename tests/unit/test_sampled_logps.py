"""Log-probs found while sampling against the slow reference, and when the scorer's are taken."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import assets
import numpy as np
import pytest
import slow_reference as slow
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from sampled import EOS, PROMPTS, SETTINGS, VOCABULARY, small
from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from sera_plugin.config import parse_block
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.sampling import transformers_engine
from sera_plugin.sampling.paged_engine import PagedEngine
from sera_plugin.sampling.sampler import CompletionCodec, Sampler
from sera_plugin.sampling.transformers_engine import TransformersEngine
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.known import COMPARED, completed
from sera_plugin.scoring.scorer import Scorer, inference
from sera_plugin.training.sharing import with_measured

OF_ID = {prompt.example_id: prompt.token_ids for prompt in PROMPTS}


def sampled(model: torch.nn.Module, **changes: Any) -> dict[str, Any]:
    settings = replace(SETTINGS, **{"measured": True, **changes})
    sampler = Sampler(Accelerator(cpu=True), settings, TransformersEngine())
    with inference(model):
        return dict(sampler.completions(model, PROMPTS, 42, 2, synced=False))


def differences(model: torch.nn.Module, found: dict[str, Any]) -> np.ndarray:
    """Of log-probs found while sampling to the slow reference's, nats."""
    with inference(model):
        return np.array(
            [
                answer.logp - slow.plain_loop(model, [(OF_ID[i], answer.token_ids)], None)[0]
                for i, answers in found.items()
                for answer in answers
            ]
        )


@pytest.mark.parametrize("segment", [3, 32])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.5, "top_p": 0.8, "stops": frozenset({EOS, 2, *range(4, 20)})},
        {"temperature": 1.7, "max_new_tokens": 20, "token_budget": 120},
        {"ending": (2,)},
        {"ending": (2, 3, 5)},
        {"temperature": 0.0, "num_candidates": 1, "max_new_tokens": 30},
        {"sequence_len": 14},
    ],
)
def test_they_are_the_model_s_own_before_temperature_and_nucleus(
    changes: dict[str, Any], segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_engine, "SEGMENT", segment)
    model = small()
    found = sampled(model, **changes)
    assert np.abs(differences(model, found)).max() <= 1e-4
    answers = [answer for each in found.values() for answer in each]
    finished = {answer.finished for answer in answers}
    assert finished == {True, False} or changes.get("temperature") == 0.0
    plain = sampled(model, **changes, measured=False)
    assert {i: [replace(a, logp=None) for a in each] for i, each in found.items()} == {
        i: list(each) for i, each in plain.items()
    }


def test_an_adapter_s_answers() -> None:
    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(small(), config)
    assert np.abs(differences(model, sampled(model))).max() <= 1e-4


def test_what_can_not_be_found_is_left_to_the_scorer() -> None:
    torch.manual_seed(0)
    mistral = MistralForCausalLM(
        MistralConfig(vocab_size=VOCABULARY, sliding_window=4, **assets.SMALLEST)
    )
    mamba = MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2)
    )
    for model in (mistral, mamba):
        answers = [a for each in sampled(model).values() for a in each]
        assert {(a.finished, a.logp is None) for a in answers} == {(True, True), (False, False)}
        assert np.abs(differences(model, sampled(model, ending=(2,)))).max() <= 1e-4


def test_stored_answers_keep_them() -> None:
    given = {3: [("a", [(np.array([4, 5], dtype=np.int32), True, -1.25)]),
                 ("b", [(np.array([7], dtype=np.int32), False, None)])]}  # fmt: skip
    read = CompletionCodec().decode(CompletionCodec().encode(given))
    assert [(i, [(ids.tolist(), *rest) for ids, *rest in each]) for i, each in read[3]] == [
        ("a", [([4, 5], True, -1.25)]),
        ("b", [([7], False, None)]),
    ]


# --- whose are taken ----------------------------------------------------------------------------


class Scoring:
    """A scorer of a model that counts what it is given."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.rows = model, 0

    def __call__(self, answers: CompletionList) -> Any:
        self.rows += len(answers.rows)
        with inference(self.model):
            scorer = Scorer(Accelerator(cpu=True), 0, None, 500)
            return scorer.logps(self.model, answers, "test")


def answers_of(model: torch.nn.Module) -> tuple[list[Any], list[float | None]]:
    found = [(OF_ID[i], a) for i, each in sampled(model).items() for a in each]
    return [(prompt, a.token_ids) for prompt, a in found], [a.logp for _, a in found]


def test_a_few_are_scored_and_the_others_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    model = small()
    rows, known = answers_of(model)
    known[COMPARED + 3] = None
    scoring = Scoring(model)
    with caplog.at_level("INFO", logger="sera_plugin"):
        found = completed(rows, known, scoring, "round-02")
    assert scoring.rows == COMPARED + 1 < len(rows)
    assert "are those found while sampling" in caplog.text
    np.testing.assert_allclose(found.logps, scoring(CompletionList(rows)).logps, atol=1e-4, rtol=0)
    taken = [row for row in range(len(rows)) if row >= COMPARED and row != COMPARED + 3]
    assert [found.logps[row] for row in taken] == [known[row] for row in taken]


def test_all_are_scored_where_both_disagree(caplog: pytest.LogCaptureFixture) -> None:
    model = small()
    rows, known = answers_of(model)
    wrong = [value - 0.01 for value in known if value is not None]
    scoring = Scoring(model)
    with caplog.at_level("WARNING", logger="sera_plugin"):
        found = completed(rows, wrong, scoring, "round-02")
    assert "so all are scored" in caplog.text
    assert scoring.rows == COMPARED + len(rows)
    np.testing.assert_array_equal(found.logps, scoring(CompletionList(rows)).logps)


def test_without_any_all_are_scored_once() -> None:
    model = small()
    rows, known = answers_of(model)
    scoring = Scoring(model)
    found = completed(rows, [None] * len(rows), scoring, "round-02")
    assert scoring.rows == len(rows)
    np.testing.assert_allclose(found.logps, known, atol=1e-4, rtol=0)


def measured(block: Any, model: Any, engine: Any) -> bool:
    accelerator = SimpleNamespace(mixed_precision="no")
    config = parse_block({"training": {"sampled_logps": block}})
    return with_measured(SETTINGS, config, model, accelerator, engine).measured


def test_engines_and_models_that_give_none(caplog: pytest.LogCaptureFixture) -> None:
    model, half = small(), small().bfloat16()
    assert measured("auto", model, TransformersEngine())
    assert measured(True, model, TransformersEngine())
    assert not measured(False, model, TransformersEngine())
    with caplog.at_level("INFO", logger="sera_plugin"):
        assert not measured("auto", model, PagedEngine())
        assert not measured("auto", half, TransformersEngine())
    assert "because the engine transformers_paged doesn't give them" in caplog.text
    assert "because in half precision" in caplog.text
    for of, engine in ((model, PagedEngine()), (half, TransformersEngine())):
        with pytest.raises(SeraConfigError, match=r"^sera.training.sampled_logps: true can't be"):
            measured(True, of, engine)


def test_half_precision_is_what_it_is_left_to_the_scorer_for() -> None:
    """Both ways in bfloat16 against the same weights in float32: root mean squares, nats."""
    half = small().bfloat16()
    whole = small()
    whole.load_state_dict({name: w.float() for name, w in half.state_dict().items()})
    found = [
        (OF_ID[i], a)
        for i, each in sampled(half, num_candidates=12, max_new_tokens=40).items()
        for a in each
    ]
    rows = [(prompt, a.token_ids) for prompt, a in found]
    exact, scored = Scoring(whole)(CompletionList(rows)).logps, Scoring(half)(CompletionList(rows))
    own = np.array([a.logp for _, a in found]) - exact
    other = scored.logps - exact
    print(f"sampling {np.sqrt(np.mean(own**2)):.3g}, scorer {np.sqrt(np.mean(other**2)):.3g}, "
          f"one from the other {np.sqrt(np.mean((own - other) ** 2)):.3g}")  # fmt: skip
    assert np.abs(own - other).max() > 1e-3
