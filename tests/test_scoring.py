"""Log-probs in batches against a plain loop, the batches themselves, and modes and random state."""

from itertools import pairwise

import assets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sera_plugin.scoring import Answers, Scorer, inference, plan_batches

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


def plain_loop(model, rows, max_length):
    """One example at a time, one token at a time."""
    sums = []
    for prompt, answer in rows:
        tokens = [*prompt, *answer][:max_length]
        total = 0.0
        logits = model(input_ids=torch.tensor([tokens])).logits[0]
        for position in range(len(prompt), len(tokens)):
            shares = torch.log_softmax(logits[position - 1].double(), dim=-1)
            total += float(shares[tokens[position]])
        sums.append(total)
    return np.array(sums)


def score(model, rows, max_length=None, token_budget=64):
    scorer = Scorer(Accelerator(cpu=True), 0, max_length, token_budget)
    with inference(model):
        return scorer.logps(model, Answers(rows), "test")


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
        found = Scorer(Accelerator(cpu=True), 0, None, 64).logps(wrap(model), Answers(ROWS), "test")
    np.testing.assert_allclose(found.logps, expected, atol=1e-5, rtol=0)


def test_only_the_logits_of_answers_are_computed(model):
    rows = [(ROWS[4][0], ROWS[4][1]), (ROWS[4][0], ROWS[4][1][:3])]
    shapes = []
    hook = model.lm_head.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
    try:
        score(model, rows)
    finally:
        hook.remove()
    # 12 prompt tokens, 8 answer tokens: the last prompt position and the answer.
    assert shapes == [(2, 9, VOCABULARY)]


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
            Scorer(Accelerator(cpu=True), pad, None, 1000).logps(model, Answers(ROWS), "test").logps
            for pad in (0, 7)
        ]
    np.testing.assert_array_equal(*logps)


def test_tokens_are_counted(model):
    rows = [((1, 2), (3, 4)), ((1, 2, 3), (4, 5, 6)), ((1,), (2,))]
    # Lengths 4, 6 and 2; a budget of 12 takes 6 and 4 (padded to 6) and then 2.
    found = score(model, rows, token_budget=12)
    assert (found.tokens, found.padded_tokens) == (12, 14)
    # Cut at 3: 3, 3 and 2 in one batch.
    found = score(model, rows, max_length=3, token_budget=12)
    assert (found.tokens, found.padded_tokens) == (8, 9)


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
