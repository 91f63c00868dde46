"""The scorer and the sampler with models in half precision, against the same weights in float32."""

import assets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sampled import EOS, PROMPTS, SETTINGS, VOCABULARY

from sera_plugin.data.margins import BadNumbersError, check_numbers
from sera_plugin.sampling.sampler import Sampler
from sera_plugin.sampling.transformers_engine import TransformersEngine, only_drawn
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.scorer import Scorer, inference

draw = np.random.default_rng(5)
LENGTHS = np.array([(8, 5), (20, 31), (1, 2), (60, 44), (9, 9), (33, 7)])
ROWS = [
    tuple(tuple(int(t) for t in draw.integers(3, VOCABULARY, size)) for size in (6, answer))
    for answer in LENGTHS.flat
]
HALVES = [torch.bfloat16, torch.float16]
PER_TOKEN = {torch.bfloat16: 0.02, torch.float16: 0.0025}
"""Nats per token of the answers by which a margin may move: the types keep 8 and 11 bits, and a
logit of these models is a sum of rounded terms of size 1."""
OVERFLOWS = VOCABULARY - 1


def policy(seed, dtype):
    """A random model whose weights bfloat16 and float16 hold exactly."""
    torch.manual_seed(seed)
    config = assets.LlamaConfig(
        vocab_size=VOCABULARY, eos_token_id=EOS, pad_token_id=0, bos_token_id=None,
        **(assets.SMALLEST | {"initializer_range": 0.25}),
    )  # fmt: skip
    model = assets.LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            # Steps of 1/256 up to 1: 8 bits.
            weight.copy_((weight * 256).round().clamp(-255, 255) / 256)
    half = model.to(dtype)
    assert all(torch.equal(p.float().to(dtype), p) for p in half.parameters())
    return half


def scored(model, rows, token_budget=2048):
    scorer = Scorer(Accelerator(cpu=True), 0, None, token_budget)
    with inference(model):
        return scorer.logps(model, CompletionList(rows), "test").logps


@pytest.mark.parametrize("dtype", HALVES)
def test_margins_are_within_a_bound_of_those_in_float32(dtype):
    found = []
    for kind in (torch.float32, dtype):
        now, reference = (scored(policy(seed, kind), ROWS).reshape(-1, 2) for seed in (1, 2))
        found.append((now - reference) @ [1, -1])
    whole, half = found
    moved = np.abs(half - whole) / LENGTHS.sum(axis=1)
    print(f"{dtype}: margins move by at most {moved.max():.5f} nats per token")
    assert np.abs(whole).min() > 0.5
    assert moved.max() <= PER_TOKEN[dtype]
    assert moved.max() > 0


@pytest.mark.parametrize("dtype", HALVES)
def test_long_answers_are_summed_without_rounding(dtype):
    """A sum of 400 log-probs in bfloat16 would be a multiple of 8 nats, in float16 of 1."""
    model = policy(3, dtype)
    tokens = [int(t) for t in draw.integers(3, VOCABULARY, 405)]
    (found,) = scored(model, [(tokens[:5], tokens[5:])])
    with inference(model):
        logits = model(input_ids=torch.tensor([tokens])).logits[0, 4:-1]
    assert logits.dtype == dtype
    exact = logits.double().log_softmax(-1)[torch.arange(400), torch.tensor(tokens[5:])].sum()
    assert found < -1024
    assert found == pytest.approx(float(exact), abs=0.2)


def test_what_overflows_is_set_aside_and_spares_its_batch():
    model = policy(4, torch.float16)
    with torch.no_grad():
        # float16 ends at 65,504; the layers add to this.
        model.model.embed_tokens.weight[OVERFLOWS] = 65_504 * torch.sign(torch.randn(16))
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(512)
    rows = [row for row in ROWS if OVERFLOWS not in row[0] + row[1]]
    bad = [((*prompt, OVERFLOWS), answer) for prompt, answer in rows[:2]]
    found = scored(model, [*bad, *rows])
    finite = np.isfinite(found)
    assert finite.tolist() == [False] * 2 + [True] * len(rows)
    np.testing.assert_allclose(found[2:], scored(model, rows, 1), atol=0.1)
    assert check_numbers(finite, 0.5, "round 2") == 2
    with pytest.raises(BadNumbersError, match=r"2 of .* look at the learning rate and the precis"):
        check_numbers(finite, 0.01, "round 2")


@pytest.mark.parametrize("dtype", HALVES)
def test_the_draw_is_as_exact_as_in_float32(dtype):
    scores = torch.randn(64, VOCABULARY).to(dtype)
    numbers = torch.rand(64, 1, dtype=torch.float64)
    assert torch.equal(
        only_drawn(scores, numbers).argmax(-1), only_drawn(scores.double(), numbers).argmax(-1)
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_answers_repeat_and_are_those_of_float32_but_for_close_draws(dtype):
    def sampled(kind):
        sampler = Sampler(Accelerator(cpu=True), SETTINGS, TransformersEngine())
        with inference(model := policy(6, kind)):
            found = sampler.completions(model, PROMPTS, 42, 2, synced=False)
        return [answer.token_ids for answers in found.values() for answer in answers]

    half, whole = sampled(dtype), sampled(torch.float32)
    assert half == sampled(dtype)
    equal = np.mean([one == other for one, other in zip(half, whole, strict=True)])
    print(f"{dtype}: {equal:.0%} of the answers are those of float32")
    assert equal >= 0.75
