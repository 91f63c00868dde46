"""Continuous batching against ``generate``: the same answers, whatever shares a batch."""

from __future__ import annotations

import copy
import functools
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from peft import LoraConfig, get_peft_model
from sampled import PROMPTS, SETTINGS
from transformers import GenerationConfig
from transformers.generation.continuous_batching import continuous_api

from sera_plugin.config import BootstrapConfig, parse_block
from sera_plugin.host import paged
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.runtime.shards import Origin
from sera_plugin.sampling.engines import engine_of
from sera_plugin.sampling.paged_engine import PagedEngine
from sera_plugin.sampling.sampler import Sampler
from sera_plugin.sampling.settings import EngineParts
from sera_plugin.sampling.transformers_engine import TransformersEngine
from sera_plugin.training.checks import check_config

Found = dict[str, tuple[Any, ...]]


def sample(model: Any, engine: Any, prompts: Any = PROMPTS, **changes: Any) -> Found:
    with torch.no_grad():
        sampler = Sampler(Accelerator(cpu=True), replace(SETTINGS, **changes), engine=engine)
        return dict(sampler.completions(model, prompts, 42, 2, synced=False))


def by_generate(model: Any, **changes: Any) -> Found:
    return sample(model, TransformersEngine(), **changes)


def by_pages(model: Any, prompts: Any = PROMPTS, **changes: Any) -> Found:
    return sample(model, PagedEngine(), prompts, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "stops": frozenset({-1})},
        {},
        {"top_p": 0.7, "temperature": 2.0, "first_candidate": 2},
        # Room for 10, 4, 12, 8, 8, 1 and 11 tokens.
        {"sequence_len": 14, "max_new_tokens": 50},
    ],
)
def test_both_engines_give_the_same_answers(model: Any, changes: dict[str, Any]) -> None:
    found = by_pages(model, **changes)
    assert found == by_generate(model, **changes)
    assert set(found) == {prompt.example_id for prompt in PROMPTS}
    assert {len(answers) for answers in found.values()} == {3}
    if changes == {}:
        lengths = {len(answer.token_ids) for answers in found.values() for answer in answers}
        assert len(lengths) > 3  # so answers don't finish in their order
        assert {answer.finished for answers in found.values() for answer in answers} == {
            True,
            False,
        }


def test_answers_do_not_depend_on_what_shares_their_batch(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = by_pages(model)
    alone: Found = {}
    for prompt in reversed(PROMPTS[:3]):
        alone |= by_pages(model, [prompt])
    assert alone == {name: whole[name] for name in alone}
    # Prompts are read in pieces, and the cache holds a few tokens of a request per block.
    monkeypatch.setattr(paged, "PREFILL", 4)
    monkeypatch.setattr(paged, "BLOCK", 4)
    assert by_pages(model) == whole


def test_prompts_of_any_length_share_a_batch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    answers = paged.paged_answers

    def counting(model: Any, requests: Any, *rest: Any) -> Any:
        calls.append(len(requests))
        return answers(model, requests, *rest)

    monkeypatch.setattr("sera_plugin.sampling.paged_engine.paged_answers", counting)
    by_pages(model)
    assert calls == [21]


def test_the_model_and_the_random_state_stay_as_they_are(model: Any) -> None:
    plain, wanted = by_pages(model), by_generate(model)
    before, model.generation_config = model.generation_config, GenerationConfig(
        repetition_penalty=5.0, min_new_tokens=6, do_sample=True, top_k=1
    )  # fmt: skip
    state = torch.get_rng_state()
    try:
        assert by_pages(model) == plain == wanted
    finally:
        model.generation_config = before
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config._attn_implementation == "sdpa"


def test_an_adapter_is_sampled_with(model: Any) -> None:
    base = copy.deepcopy(model)
    torch.manual_seed(3)
    wrapped = get_peft_model(
        base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    ).eval()
    found = by_pages(wrapped)
    assert found == by_generate(wrapped)
    assert found != by_pages(model)


def test_mixed_precision(model: Any) -> None:
    # As the host trains by default: layers in bf16, embeddings and norms in fp32, under autocast.
    mixed = copy.deepcopy(model)
    mixed.model.layers.to(torch.bfloat16)
    forward = torch.autocast("cpu", torch.bfloat16)(type(mixed).forward)
    mixed.forward = types.MethodType(convert_outputs_to_fp32(forward), mixed)
    changes = {"temperature": 0.0, "num_candidates": 1}
    found, expected = by_pages(mixed, **changes), by_generate(mixed, **changes)
    assert sum(found[name] == expected[name] for name in expected) >= len(expected) - 1


@pytest.mark.parametrize("error", ["CUDA out of memory.", "of another kind"])
def test_a_batch_that_does_not_fit_is_halved_and_other_errors_are_raised(
    model: Any, error: str
) -> None:
    whole, own, sizes = by_pages(model), model.forward, []

    def forward(input_ids: Any = None, logits_to_keep: Any = 0, **inputs: Any) -> Any:
        rows = len(inputs.get("logits_indices", ()))
        sizes.append(rows)
        if rows > 9:
            raise torch.cuda.OutOfMemoryError(error)
        return own(input_ids=input_ids, logits_to_keep=logits_to_keep, **inputs)

    model.forward = functools.wraps(own)(forward)
    try:
        if error.startswith("CUDA"):
            assert by_pages(model) == whole
            assert [size for size in sizes if size > 9] == [21, 12]
        else:
            with pytest.raises(RuntimeError, match="of another kind"):
                by_pages(model)
    finally:
        del model.forward
    assert model.config._attn_implementation == "sdpa"


def test_a_cache_that_does_not_fit_names_the_memory(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "MEMORY", 1e-9)
    with pytest.raises(RuntimeError, match=r"No room for a cache .*: out of memory\."):
        by_pages(model)


def test_a_lost_answer_is_an_error(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = continuous_api.OutputRouter.deliver_batch

    def losing(self: Any, outputs: list[Any]) -> None:
        deliver(self, [output for output in outputs if output.request_id != "2/1"])

    monkeypatch.setattr(continuous_api.OutputRouter, "deliver_batch", losing)
    with pytest.raises(RuntimeError, match="lost 1 of 21 answers"):
        by_pages(model)


def test_weights_on_several_processes_are_refused(model: Any) -> None:
    sampler = Sampler(Accelerator(cpu=True), SETTINGS, engine=PagedEngine())
    with pytest.raises(RuntimeError, match="spread over processes"):
        sampler.completions(model, PROMPTS, 42, 2, synced=True)


def test_stored_answers_of_one_engine_do_not_serve_the_other(model: Any, tmp_path: Any) -> None:
    origin = Origin(tmp_path, "round-02", "weights")
    for engine in (TransformersEngine(), PagedEngine(), PagedEngine()):
        sampler = Sampler(Accelerator(cpu=True), SETTINGS, engine=engine)
        with torch.no_grad():
            sampler.completions(model, PROMPTS, 42, 2, synced=False, origin=origin)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_key_names_the_engine() -> None:
    engines = {
        name: type(
            engine_of(
                EngineParts(BootstrapConfig(engine=name), {}, Accelerator(cpu=True), None, None)
            )
        )
        for name in ("transformers", "transformers_paged")
    }
    assert engines == {"transformers": TransformersEngine, "transformers_paged": PagedEngine}
    assert all(engine.name == name for name, engine in engines.items())


HOST = {"rl": "dpo", "num_epochs": 2}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "under DeepSpeed ZeRO-3"),
        ({"fsdp_config": {"fsdp_version": 2}}, "under FSDP"),
    ],
)
def test_what_the_paged_engine_can_not_sample_from_is_refused(
    keys: dict[str, Any], words: str
) -> None:
    paged_block = {"bootstrap": {"engine": "transformers_paged"}}
    with pytest.raises(SeraConfigError, match=words) as refused:
        check_config(HOST | keys, parse_block(paged_block))
    assert "sera.bootstrap.engine: transformers_paged" in str(refused.value)
    for block in (True, {"bootstrap": {"engine": "transformers_paged", "fraction": 0.0}}):
        check_config(HOST | keys, parse_block(block))
    check_config(HOST, parse_block(paged_block))
