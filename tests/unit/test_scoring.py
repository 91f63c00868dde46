"""Log-probs in batches against a plain loop, the batches themselves, and modes and random state."""

import json
from itertools import pairwise
from pathlib import Path

import assets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from slow_reference import plain_loop

from sera_plugin.runtime.memory import Fitting
from sera_plugin.scoring import logps as completion_logps
from sera_plugin.scoring.batches import plan_batches
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.scorer import SHORTEST, Scorer, inference

DATA = Path(__file__).resolve().parents[3] / "shared/data/alpaca_eval_pairs.jsonl"

VOCABULARY = 50
draw = np.random.default_rng(3)
ROWS = [
    (
        tuple(int(t) for t in draw.integers(1, VOCABULARY, prompt)),
        tuple(int(t) for t in draw.integers(1, VOCABULARY, answer)),
    )
    for prompt, answer in [(4, 6), (1, 12), (9, 1), (3, 3), (12, 8), (2, 1), (6, 0), (5, 5)]
]


@pytest.fixture(scope="module")
def model():
    return assets.small_llama(VOCABULARY, attention_dropout=0.5)


class Wrapper(torch.nn.Module):
    """Hides the causal LM behind ``module``, as DDP does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


class AllLogits(torch.nn.Module):
    """A causal LM that can't restrict its logits to the last positions."""

    def __init__(self, inner):
        super().__init__()
        self.inner = [inner]

    def forward(self, input_ids, attention_mask, use_cache):
        return self.inner[0](input_ids=input_ids, attention_mask=attention_mask)


def score(model, rows, max_length=None, token_budget=64):
    scorer = Scorer(Accelerator(cpu=True), 0, max_length, token_budget)
    with inference(model):
        return scorer.logps(model, CompletionList(rows), "test")


@pytest.mark.parametrize("token_budget", [1, 13, 40, 10_000])
@pytest.mark.parametrize("max_length", [None, 100, 10, 5])
def test_logps_equal_a_plain_loop(model, max_length, token_budget):
    found = score(model, ROWS, max_length, token_budget)
    with inference(model):
        expected = plain_loop(model, ROWS, max_length)
    assert found.logps.dtype == np.float64
    np.testing.assert_allclose(found.logps, expected, atol=1e-5, rtol=0)
    assert np.abs(expected).max() > 5  # there is something to compare


@pytest.mark.parametrize("wrap", [Wrapper, AllLogits, lambda m: Wrapper(Wrapper(m))])
def test_logps_through_wrappers(model, wrap):
    with inference(model):
        expected = plain_loop(model, ROWS, None)
        found = Scorer(Accelerator(cpu=True), 0, None, 64).logps(
            wrap(model), CompletionList(ROWS), "test"
        )
    np.testing.assert_allclose(found.logps, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("at_a_time", "parts"), [(512, [15]), (4, [4, 4, 4, 3])])
def test_only_the_logits_of_answers_are_computed(model, monkeypatch, at_a_time, parts):
    monkeypatch.setattr(completion_logps, "POSITIONS", at_a_time)
    rows = [(ROWS[4][0], ROWS[4][1]), (ROWS[4][0], ROWS[4][1][:7])]
    shapes = []
    head, own = model.lm_head, model.lm_head.forward

    def forward(hidden):
        shapes.append(tuple(hidden.shape))
        return own(hidden)

    head.forward = forward
    try:
        found = score(model, rows).logps
        assert head.forward is forward
    finally:
        del head.forward
    # 12 prompt tokens in each row; answers of 8 and 7 tokens.
    assert shapes == [(part, 16) for part in parts]
    with inference(model):
        np.testing.assert_allclose(found, plain_loop(model, rows, None), atol=1e-5, rtol=0)


@pytest.mark.parametrize("after", [lambda x: 5 * torch.tanh(x / 5), lambda x: x * 0.25])
def test_a_model_that_changes_its_logits_is_scored_by_them(model, after):
    class Changed(type(model)):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = after(out.logits)
            return out

    changed = Changed(model.config)
    changed.load_state_dict(model.state_dict())
    with inference(changed):
        expected = plain_loop(changed, ROWS, None)
    plain = score(model, ROWS).logps
    np.testing.assert_allclose(score(changed, ROWS).logps, expected, atol=1e-5, rtol=0)
    assert np.abs(plain - expected).max() > 0.1
    assert "forward" not in vars(changed.lm_head)


class Narrow(torch.nn.Module):
    """A model with room for few tokens at a time; it asks for memory as a GPU is asked."""

    def __init__(self, module, room):
        super().__init__()
        self.module, self.room, self.sizes = module, room, []

    def forward(self, **inputs):
        size = inputs["input_ids"].numel()
        self.sizes.append(size)
        if size > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return self.module(**inputs)


def test_batches_that_do_not_fit_are_halved(model):
    rows = ROWS * 4
    narrow = Narrow(model, room=40)
    scorer = Scorer(Accelerator(cpu=True), 0, None, 160)
    with inference(model):
        found = scorer.logps(narrow, CompletionList(rows), "test").logps
        expected = plain_loop(model, rows, None)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    failed = [size for size in narrow.sizes if size > 40]
    # Each failure teaches a smaller size; no size fails twice.
    assert failed == sorted(set(failed), reverse=True)
    assert 2 <= len(failed) <= 5
    assert scorer.fitting.too_large == failed[-1]


def test_memory_that_does_not_suffice_for_one_row_is_an_error(model):
    with inference(model), pytest.raises(torch.cuda.OutOfMemoryError):
        Scorer(Accelerator(cpu=True), 0, None, 160).logps(
            Narrow(model, 15), CompletionList(ROWS), "test"
        )


def test_ranks_that_move_together_do_not_halve(model):
    narrow = Narrow(model, room=40)
    scorer = Scorer(Accelerator(cpu=True), 0, None, 160, fitting=Fitting(may_cut=False))
    with inference(model), pytest.raises(torch.cuda.OutOfMemoryError):
        scorer.logps(narrow, CompletionList(ROWS * 4), "test")
    assert len(narrow.sizes) == 1


def test_truncation_by_hand(model):
    prompt, answer = ROWS[4]
    (whole,) = score(model, [(prompt, answer[:3])]).logps
    (cut,) = score(model, [(prompt, answer)], max_length=len(prompt) + 3).logps
    assert cut == pytest.approx(whole, abs=1e-6)
    assert score(model, [(prompt, answer)], max_length=len(prompt)).logps.tolist() == [0.0]
    assert score(model, [(prompt, answer)], max_length=len(prompt) - 4).logps.tolist() == [0.0]


def test_the_value_of_the_padding_does_not_matter(model):
    with inference(model):
        logps = [
            Scorer(Accelerator(cpu=True), pad, None, 1000)
            .logps(model, CompletionList(ROWS), "test")
            .logps
            for pad in (0, 7)
        ]
    np.testing.assert_array_equal(*logps)


def test_tokens_are_counted(model):
    rows = [((1, 2), (3,) * 21), ((1, 2, 3), (4,) * 22), ((1,), (2,))]
    # Lengths 23, 25 and 2; a budget of 60 takes 25 and 23 (padded to 25), and 2 is too short.
    found = score(model, rows, token_budget=60)
    assert (found.tokens, found.padded_tokens) == (50, 52)
    # Cut at 3: 3 and 3 in one batch, and 2.
    found = score(model, rows, max_length=3, token_budget=60)
    assert (found.tokens, found.padded_tokens) == (8, 8)


def test_nothing_to_score(model):
    found = score(model, [])
    assert (found.logps.shape, found.tokens, found.padded_tokens) == ((0,), 0, 0)


def test_plan_batches_by_hand():
    batches = plan_batches(np.array([3, 10, 3, 5, 30, 4]), 20)
    assert [batch.tolist() for batch in batches] == [[4], [1, 3], [5, 0, 2]]


@given(arrays(np.int64, st.integers(0, 40), elements=st.integers(0, 50)), st.integers(1, 200))
def test_batches_hold_every_row_once_and_respect_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * int(lengths[batch].max())
        assert padded <= budget or len(batch) == 1
    # Rows come longest first, so little is padded, and rows of one length in their own order.
    order = [(-int(lengths[row]), int(row)) for batch in batches for row in batch]
    assert order == sorted(order)


@given(arrays(np.int64, st.integers(1, 30), elements=st.integers(1, 50)), st.integers(1, 200))
def test_batches_are_full(lengths, budget):
    batches = plan_batches(lengths, budget)
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * int(lengths[batch].max()) > budget
        assert len(following)


@given(arrays(np.int64, st.integers(0, 60), elements=st.integers(1, 900)), st.integers(1, 9000))
def test_little_of_a_batch_is_padding(lengths, budget):
    batches = plan_batches(lengths, budget, 0.9)
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert lengths[batch].min() >= 0.9 * lengths[batch].max()
        assert len(batch) * lengths[batch].max() <= budget or len(batch) == 1


@pytest.mark.skipif(not DATA.exists(), reason=f"the preference data is not at {DATA}")
@pytest.mark.parametrize("micro_batch_size", [1, 4, 8])
def test_less_than_a_twentieth_of_real_batches_is_padding(micro_batch_size):
    pairs = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    words = assets.tokenizer([pair["chosen"]["content"] for pair in pairs], "llama")
    lengths = np.array(
        [
            len(words.apply_chat_template([*pair["conversation"], pair[side]])["input_ids"])
            for pair in pairs
            for side in ("chosen", "rejected")
        ]
    )
    budget = 2 * micro_batch_size * 1024
    batches = plan_batches(lengths, budget, SHORTEST)
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    print(f"{1 - lengths.sum() / padded:.2%} of {padded} tokens in {len(batches)} batches")
    assert 1 - lengths.sum() / padded < 0.05
    # In the dataset's order it is more than a quarter.
    cuts = range(0, len(lengths), 2 * micro_batch_size)
    naive = sum(len(row) * int(row.max()) for row in np.split(lengths, cuts[1:]))
    assert micro_batch_size == 1 or 1 - lengths.sum() / naive > 0.25


def test_inference_puts_modes_and_random_state_back(model):
    model.train()
    model.model.layers[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with inference(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(7)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_inference_puts_modes_and_random_state_back_after_an_error(model):
    model.train()
    before = torch.get_rng_state()

    def fail():
        with inference(model):
            torch.rand(7)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_scoring_ignores_dropout_and_leaves_no_gradient(model):
    model.train()
    first, second = score(model, ROWS).logps, score(model, ROWS).logps
    np.testing.assert_array_equal(first, second)
    assert all(parameter.grad is None for parameter in model.parameters())
