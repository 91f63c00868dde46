"""Scoring that reads a prompt once for all its answers, against the slow reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import assets
import numpy as np
import pytest
import slow_reference as slow
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from sera_plugin.runtime.memory import Fitting
from sera_plugin.runtime.shards import Origin, round_label
from sera_plugin.scoring import logps as at_the_head
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.layout import NotPackable
from sera_plugin.scoring.scorer import Scorer, inference
from sera_plugin.scoring.sharing import plan_shared

VOCABULARY = 50

Rows = list[tuple[tuple[int, ...], tuple[int, ...]]]


def rows_of(sizes: list[tuple[int, list[int]]], seed: int) -> Rows:
    """Prompts with answers of these lengths, in an order of their own."""
    draw = np.random.default_rng(seed)
    found: Rows = []
    for asked, answers in sizes:
        prompt = tuple(draw.integers(1, VOCABULARY, asked).tolist())
        found += [(prompt, tuple(draw.integers(1, VOCABULARY, n).tolist())) for n in answers]
    return [found[place] for place in draw.permutation(len(found))]


# Long prompts, short ones, one of a single token, one answer alone, and answers without a token.
SIZES = [(30, [5, 2, 9, 12]), (1, [4, 4, 20]), (28, [40, 1, 0]), (9, [6]), (12, [3, 3, 8, 8, 2])]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return assets.small_llama(VOCABULARY, attention_dropout=0.5)


def score(model: torch.nn.Module, rows: Rows, budget: int = 200, **changes: Any) -> Any:
    scorer = Scorer(
        Accelerator(cpu=True), 0, **{"max_length": None, **changes}, token_budget=budget
    )
    with inference(model):
        return scorer.logps(model, CompletionList(rows), "test")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", [512, 3])
@pytest.mark.parametrize("budget", [10, 90, 4000])
@pytest.mark.parametrize("max_length", [None, 33, 12])
def test_log_probs_are_those_of_the_slow_reference(
    attention: str, positions: int, budget: int, max_length: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(at_the_head, "POSITIONS", positions)
    monkeypatch.setattr("sera_plugin.scoring.scorer.SAVING", 1e9)
    model = assets.small_llama(VOCABULARY, attn_implementation=attention)
    rows = rows_of(SIZES, 1)
    found = score(model, rows, budget, max_length=max_length, shares=True)
    with inference(model):
        expected = slow.plain_loop(model, rows, max_length)
    assert np.abs(found.logps - expected).max() <= 1e-4
    assert np.abs(expected).max() > 5
    cut = [(p[:max_length], a[: None if max_length is None else max(0, max_length - len(p))])
           for p, a in rows]  # fmt: skip
    once = sum(len(p) for p in {p for p, _ in cut}) + sum(len(a) for _, a in cut)
    assert found.tokens == once


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(0, 7), min_size=1, max_size=4)),
        min_size=1,
        max_size=7,
    ),
    st.integers(1, 120),
    st.integers(0, 2**31 - 1),
)
def test_any_prompts_and_answers(
    sizes: list[tuple[int, list[int]]], budget: int, seed: int
) -> None:
    model = assets.small_llama(VOCABULARY).double()
    rows = rows_of(sizes, seed)
    scorer = Scorer(Accelerator(cpu=True), 0, None, budget)
    numbers = CompletionList(rows).prompts
    order = np.argsort(numbers, kind="stable")
    with inference(model):
        found = scorer.shared_logps(model, [rows[i] for i in order], numbers[order])
        expected = [slow.logp(model, *rows[i]) for i in order]
    assert found.tolist() == pytest.approx(expected, abs=1e-8)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 90)), min_size=1, max_size=40),
    st.integers(1, 500),
)
def test_every_completion_is_in_one_batch_with_those_of_its_prompt(
    sizes: list[tuple[int, int]], budget: int
) -> None:
    prompts = np.array([size[0] % 7 for size in sizes])
    asked = prompts + 1
    lengths = asked + np.array([size[1] for size in sizes])
    plan = plan_shared(lengths, prompts, asked, budget)
    assert plan is not None
    assert sorted(np.concatenate(plan.batches).tolist()) == list(range(len(sizes)))
    of = [set(prompts[batch].tolist()) for batch in plan.batches]
    assert sum(map(len, of)) == len(set(prompts.tolist()))
    once = sum({int(p): int(a) for p, a in zip(prompts, asked, strict=True)}.values())
    assert plan.tokens == once + int((lengths - asked).sum())
    assert plan.padded >= plan.tokens


def test_prompts_are_shared_where_that_saves_work(model: torch.nn.Module) -> None:
    rows = rows_of([(200, [9, 9, 8, 9])] * 3, 2)
    with_, without = score(model, rows, 900, shares=True), score(model, rows, 900)
    assert with_.tokens == 3 * 200 + 3 * 35
    assert without.tokens == 12 * 200 + 3 * 35
    np.testing.assert_allclose(with_.logps, without.logps, atol=1e-4, rtol=0)
    rows = rows_of([(2, [90, 80])] * 3, 2)
    assert score(model, rows, 900, shares=True).tokens == score(model, rows, 900).tokens
    assert score(model, [((), (1, 2))] * 9, 900, shares=True).tokens == 18


def test_what_does_not_fit_is_halved(model: torch.nn.Module) -> None:
    class Narrow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.failed = model, 0

        def forward(self, **inputs: Any) -> Any:
            if inputs["input_ids"].numel() > 500:
                self.failed += 1
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
            return self.module(**inputs)

    rows, narrow = rows_of([(200, [9, 9, 8, 9])] * 6, 3), Narrow()
    found = score(narrow, rows, 2000, shares=True)
    np.testing.assert_allclose(found.logps, score(model, rows, 2000).logps, atol=1e-4, rtol=0)
    assert 1 <= narrow.failed <= 3


def test_ranks_that_move_together_make_equally_many_passes(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sera_plugin.scoring.scorer.SAVING", 1e9)
    rows = rows_of([*SIZES, (3, [2]), (100, [4, 90, 30])], 4)
    passes, made = [], []
    own = Scorer.shared_logps

    def counted(*given: Any) -> Any:
        made.append(0)
        found = own(*given)
        passes.append(made[-1])
        return found

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, **inputs: Any) -> Any:
            made[-1] += 1
            return self.module(**inputs)

    monkeypatch.setattr(Scorer, "shared_logps", counted)
    found = score(Counting(), rows, 150, shares=True, fitting=Fitting(may_cut=False))
    assert len(passes) > 2
    assert len(set(passes)) == 1
    np.testing.assert_allclose(found.logps, score(model, rows).logps, atol=1e-4, rtol=0)


def test_stored_log_probs_of_one_way_do_not_serve_the_other(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    rows = rows_of([(200, [9, 9, 8, 9])] * 3, 2)
    origin = Origin(tmp_path, round_label(2), "model")
    for shares in (False, True, True):
        scorer = Scorer(Accelerator(cpu=True), 0, None, 900, shares=shares)
        with inference(model):
            scorer.logps(model, CompletionList(rows), "test", origin)
        assert len(list(tmp_path.iterdir())) == 1 + shares


def mistral(window: int) -> torch.nn.Module:
    config = MistralConfig(vocab_size=VOCABULARY, sliding_window=window, **assets.SMALLEST)
    torch.manual_seed(0)
    return MistralForCausalLM(config)


def test_a_window_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sera_plugin.scoring.scorer.SAVING", 1e9)
    model, rows = mistral(6), rows_of(SIZES, 1)
    found = score(model, rows, 400, shares=True)
    with inference(model):
        expected = slow.plain_loop(model, rows, None)
    assert np.abs(found.logps - expected).max() <= 1e-4


def test_a_model_without_keys_and_values_is_named() -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2)
    rows = rows_of([(200, [9, 9, 8, 9])], 2)
    with pytest.raises(NotPackable, match="keeps no keys and values"):
        score(MambaForCausalLM(config), rows, 900, shares=True)


def test_a_model_that_changes_its_logits_is_named() -> None:
    changed = assets.small_llama(VOCABULARY)

    def squash(_: Any, __: Any, out: Any) -> Any:
        out.logits = 5 * torch.tanh(out.logits / 5)
        return out

    changed.register_forward_hook(squash)
    with pytest.raises(NotPackable, match="what its head gives"):
        score(changed, rows_of([(200, [9, 9, 8, 9])], 2), 900, shares=True)
