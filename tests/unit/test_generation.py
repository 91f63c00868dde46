"""Sampling: the draw itself, and rollouts of a tiny real model that depend on nothing else."""

import copy
import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from sampled import END, EOS, PROMPTS, SETTINGS, VOCABULARY
from transformers import GenerationConfig

from sera_plugin.data.candidates import Source
from sera_plugin.data.ids import uniforms
from sera_plugin.sampling import sampler as generation
from sera_plugin.sampling import transformers_engine
from sera_plugin.sampling.sampler import Completion, Prompt, Sampler
from sera_plugin.sampling.transformers_engine import InverseCdfSampler, TransformersEngine


def sample(model, prompts=PROMPTS, seed=42, round_number=2, **changes):
    with torch.no_grad():
        sampler = Sampler(Accelerator(cpu=True), replace(SETTINGS, **changes), TransformersEngine())
        return sampler.completions(model, prompts, seed, round_number, synced=False)


def draw_tokens(scores, numbers):
    """Tokens that the processor leaves for each row's number."""
    processor = InverseCdfSampler(torch.tensor(numbers)[:, None], prompt_tokens=4)
    left = processor(torch.zeros((len(numbers), 4), dtype=torch.long), scores)
    assert ((left == 0).sum(dim=1) == 1).all()
    assert (torch.isinf(left) | (left == 0)).all()
    return left.argmax(dim=1).numpy()


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-np.inf, -9.0, -1.0, 0.0, 0.5, 3.0, 30.0]), min_size=2, max_size=9)
    .filter(lambda row: max(row) > -np.inf),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
)  # fmt: skip
def test_the_draw_is_numpys_inverse_cdf(row, numbers):
    scores = torch.tensor([row] * len(numbers), dtype=torch.float32)
    tokens = draw_tokens(scores, numbers)
    weights = np.exp(np.array(row, dtype=np.float64) - max(row))
    cumulative = np.cumsum(weights / weights.sum())
    for token, number in zip(tokens, numbers, strict=True):
        assert weights[token] > 0  # what top_p cut is never drawn
        below = cumulative[token - 1] if token else 0.0
        assert below - 1e-12 <= number <= cumulative[token] + 1e-12


@pytest.mark.parametrize(
    ("number", "token"), [(0.0, 1), (0.24, 1), (0.26, 2), (0.74, 2), (0.76, 3), (1 - 2**-53, 3)]
)
def test_the_draw_by_hand(number, token):
    # Shares 0, 1/4, 1/2, 1/4, 0.
    scores = torch.tensor([[-np.inf, 0.0, np.log(2.0), 0.0, -np.inf]])
    assert draw_tokens(scores, [number]) == [token]


def test_every_step_has_a_number_of_its_own():
    numbers = torch.tensor([[0.1, 0.9], [0.9, 0.1]], dtype=torch.float64)
    processor = InverseCdfSampler(numbers, prompt_tokens=3)
    scores = torch.zeros((2, 2))
    first = processor(torch.zeros((2, 3), dtype=torch.long), scores).argmax(dim=1)
    second = processor(torch.zeros((2, 4), dtype=torch.long), scores).argmax(dim=1)
    assert first.tolist() == [0, 1]
    assert second.tolist() == [1, 0]


def test_frequencies_follow_the_softmax():
    count = 40_000
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    tokens = draw_tokens(scores.repeat(count, 1), uniforms(count, 7, "frequencies"))
    expected = count * scores.double().softmax(0).numpy()
    squares = (np.bincount(tokens, minlength=5) - expected) ** 2 / expected
    assert squares.sum() < 18.5  # χ² with 4 degrees of freedom, one in a thousand


def first_tokens(model, count, **changes):
    prompts = [Prompt(f"copy-{i}", PROMPTS[0].token_ids) for i in range(count)]
    changes = {"num_candidates": 5, "max_new_tokens": 1, "stops": frozenset({-1}), **changes}
    found = sample(model, prompts, **changes)
    return np.array([r.token_ids[0] for rollouts in found.values() for r in rollouts])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7)])
def test_answers_follow_the_model(model, temperature, top_p):
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0].token_ids])).logits[0, -1].double()
    shares = (logits / temperature).softmax(0).numpy()
    order = np.argsort(-shares)
    nucleus = order[: np.searchsorted(np.cumsum(shares[order]), top_p) + 1]
    inside = np.zeros(VOCABULARY)
    inside[nucleus] = shares[nucleus] / shares[nucleus].sum()
    tokens = first_tokens(model, 800, temperature=temperature, top_p=top_p)
    found = np.bincount(tokens, minlength=VOCABULARY)
    assert found[inside == 0].sum() == 0
    expected = len(tokens) * inside
    usual = expected >= 5
    squares = (found[usual] - expected[usual]) ** 2 / expected[usual]
    freedom = usual.sum() - 1
    assert freedom >= 2
    assert squares.sum() < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("budget", [1, 60])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_do_not_depend_on_the_batch(model, budget, temperature):
    whole = sample(model, temperature=temperature)
    assert sample(model, temperature=temperature, token_budget=budget) == whole
    alone = sample(model, PROMPTS[3:4], temperature=temperature)
    assert alone["example-3"] == whole["example-3"]
    assert sample(model, PROMPTS[::-1], temperature=temperature) == whole


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_leaving_early_and_sharing_a_pass_change_no_answer(model, monkeypatch, temperature):
    changes = {"temperature": temperature, "num_candidates": 4, "max_new_tokens": 20}
    changes["stops"] = frozenset({EOS, END, *range(5, VOCABULARY, 7)})
    monkeypatch.setattr(generation, "SHORTEST", 0.0)
    rows = []
    hook = model.model.register_forward_hook(
        lambda *call: rows.append(tuple(call[2].last_hidden_state.shape[:2])), with_kwargs=False
    )
    try:
        whole = sample(model, **changes)
        in_one_go = list(rows)
        rows.clear()
        monkeypatch.setattr(transformers_engine, "SEGMENT", 3)
        assert sample(model, **changes) == whole
    finally:
        hook.remove()
    # Every prompt but its last token is read once, not once per answer.
    assert in_one_go[0] == rows[0] == (7, 11)
    assert in_one_go[1] == rows[1] == (28, 1)
    assert {count for count, _ in in_one_go[1:]} == {28}
    counts = [count for count, _ in rows[1:]]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < 28
    assert sum(counts) < sum(count for count, _ in in_one_go[1:])


def test_a_long_prompt_does_not_pad_the_short_ones(model):
    short, long = [Prompt(f"short-{i}", (5, 6)) for i in range(3)], Prompt("long", (7,) * 60)
    widths = []
    hook = model.model.register_forward_hook(
        lambda *call: widths.append(tuple(call[2].last_hidden_state.shape[:2]))
    )
    try:
        sample(model, [short[0], long, *short[1:]], token_budget=10_000)
    finally:
        hook.remove()
    assert [size for size in widths if size[1] > 1] == [(1, 59)]


def test_batches_of_answers_that_do_not_fit_are_halved(model, monkeypatch):
    monkeypatch.setattr(generation, "SHORTEST", 0.0)
    whole = sample(model)
    sizes, own = [], model.forward

    def forward(input_ids=None, **inputs):
        sizes.append(len(input_ids))
        if len(input_ids) > 9:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return own(input_ids=input_ids, **inputs)

    model.forward = functools.wraps(own)(forward)
    try:
        assert sample(model) == whole
    finally:
        del model.forward
    assert [size for size in sizes if size > 9] == [21, 12]


def test_answers_hold_one_object_for_each_token_id(model):
    found = sample(model, num_candidates=20)
    objects = {id(token) for rollouts in found.values() for r in rollouts for token in r.token_ids}
    assert len(objects) <= VOCABULARY


def test_more_candidates_begin_with_the_fewer_ones(model):
    few, many = sample(model), sample(model, num_candidates=5)
    assert {name: rollouts[:3] for name, rollouts in many.items()} == few


def test_candidates_are_drawn_by_their_numbers(model):
    whole = sample(model, num_candidates=5)
    first, rest = (
        sample(model, num_candidates=n, first_candidate=start) for n, start in [(3, 0), (2, 3)]
    )
    assert {i: first[i] + rest[i] for i in whole} == whole


@pytest.mark.parametrize(
    ("sampler", "candidates", "passes"),
    [
        ("policy", 3, [(Source.POLICY, 3, 0)]),
        ("reference", 3, [(Source.REFERENCE, 3, 0)]),
        ("mixed", 4, [(Source.POLICY, 2, 0), (Source.REFERENCE, 2, 2)]),
        ("mixed", 5, [(Source.POLICY, 3, 0), (Source.REFERENCE, 2, 3)]),
        ("mixed", 2, [(Source.POLICY, 1, 0), (Source.REFERENCE, 1, 1)]),
    ],
)
def test_who_writes_which_candidates(sampler, candidates, passes):
    found = replace(SETTINGS, num_candidates=candidates).shared_out(sampler)
    assert [(s.writer, s.num_candidates, s.first_candidate) for s in found] == passes


def test_answers_repeat_and_do_not_touch_torchs_random_state(model):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sample(model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert sample(model) == first


def test_answers_change_with_seed_round_example_and_candidate(model):
    here = sample(model)
    assert sample(model, seed=43) != here
    assert sample(model, round_number=3) != here
    renamed = sample(model, [Prompt("other", PROMPTS[0].token_ids)])
    assert renamed["other"] != here["example-0"]
    assert all(len(set(rollouts)) > 1 for rollouts in here.values())


def test_temperature_zero_is_greedy(model):
    found = sample(model, temperature=0.0, stops=frozenset({-1}))
    for prompt in PROMPTS:
        tokens = list(prompt.token_ids)
        for _ in range(8):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        greedy = Completion(tuple(tokens[len(prompt.token_ids) :]), False)
        assert found[prompt.example_id] == (greedy,) * 3


def test_endings_are_replaced_and_cut_answers_are_marked(model):
    found = [r for rollouts in sample(model, num_candidates=20).values() for r in rollouts]
    assert {rollout.finished for rollout in found} == {True, False}
    for rollout in found:
        if rollout.finished:
            assert rollout.token_ids[-2:] == SETTINGS.ending
            assert not SETTINGS.stops & set(rollout.token_ids[:-2])
            assert len(rollout.token_ids) <= 8 - 1 + 2
        else:
            assert not SETTINGS.stops & set(rollout.token_ids)
            assert len(rollout.token_ids) == 8


@pytest.mark.parametrize("sequence_len", [14, 16, 20])
def test_prompt_and_answer_fit_sequence_len(model, sequence_len):
    found = sample(model, num_candidates=12, max_new_tokens=50, sequence_len=sequence_len)
    longest = 0
    for prompt in PROMPTS:
        room = sequence_len - len(prompt.token_ids) - 1
        for rollout in found[prompt.example_id]:
            length = len(prompt.token_ids) + len(rollout.token_ids)
            assert length <= sequence_len
            assert rollout.finished or len(rollout.token_ids) == room
            longest = max(longest, length)
    assert longest >= sequence_len - 1


@pytest.mark.parametrize(
    ("prompt_tokens", "room"), [(10, 8), (55, 8), (56, 7), (62, 1), (63, 0), (70, -7)]
)
def test_room_by_hand(prompt_tokens, room):
    # 64 = prompt + room, where the two tokens of the ending replace the stop token.
    assert SETTINGS.room(prompt_tokens) == room


def test_the_models_own_generation_settings_do_not_bend_the_policy(model):
    plain = sample(model)
    own = GenerationConfig(
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        suppress_tokens=list(range(4, 30)),
        min_new_tokens=6,
        do_sample=True,
        temperature=0.1,
        top_k=1,
        top_p=0.1,
        max_length=2,
    )
    before, model.generation_config = model.generation_config, own
    try:
        assert sample(model) == plain
        assert model.generation_config is own
    finally:
        model.generation_config = before


def test_an_adapters_base_keeps_its_generation_settings(model):
    base = copy.deepcopy(model)
    base.generation_config = GenerationConfig(repetition_penalty=5.0)
    own = base.generation_config
    wrapped = get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    # A fresh adapter changes nothing yet.
    assert sample(wrapped.eval()) == sample(model)
    assert base.generation_config is own


def test_no_prompts_give_no_answers(model):
    assert sample(model, []) == {}
