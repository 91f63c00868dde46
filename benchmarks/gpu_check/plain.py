"""Checks that need torch, transformers and peft alone: scorer, sampler, engines, losses, memory."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.gpu_check.found import Machine, Row, Skipped, needs
from sera_plugin.data.candidates import Prompt
from sera_plugin.sampling.sampler import Sampler
from sera_plugin.sampling.settings import Sampling
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.logps import answer_logps
from sera_plugin.scoring.scorer import Scorer, inference
from sera_plugin.training.objective import BASES, Step, base_of

PER_TOKEN = 0.02
"""Nats per token by which bfloat16 may move a margin; it keeps 8 bits."""
STOP = 2


def llama(machine: Machine, dtype: torch.dtype, seed: int = 0, **options: Any) -> Any:
    """A random Llama: on a GPU of 1.2 billion parameters, on a CPU of 0.3 million."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    if machine.gpu:
        sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
        heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    vocabulary = 128_256 if machine.gpu else 512
    config = LlamaConfig(
        vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=4096,
        bos_token_id=None, eos_token_id=STOP, pad_token_id=0, **sizes, **heads, **options,
    )  # fmt: skip
    with torch.device(machine.device):
        return LlamaForCausalLM(config).to(dtype)


def rows(machine: Machine, count: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts with answers, two by two."""
    high = 800 if machine.gpu else 60
    own = np.random.default_rng(1)
    sizes = own.integers(high // 4, high, size=(count, 2)) // 2
    return [tuple(tuple(map(int, own.integers(3, 500, n))) for n in pair) for pair in sizes]


def scored(model: Any, given: Any, budget: int = 16_384) -> np.ndarray:
    with inference(model):
        scorer = Scorer(Accelerator(cpu=model.device.type == "cpu"), 0, None, budget)
        return scorer.logps(model, CompletionList(given), "scoring").logps


def scoring(machine: Machine) -> list[Row]:
    """bf16 against float32, batches against single rows, and speed."""
    given = rows(machine, 64 if machine.gpu else 16)
    lengths = np.array([len(answer) for _, answer in given]).reshape(-1, 2)
    model = llama(machine, torch.bfloat16)
    half = scored(model, given)
    alone = scored(model, given, budget=1)
    start = time.perf_counter()
    scored(model, given)
    seconds = time.perf_counter() - start
    whole = scored(model.float(), given)
    moved = np.abs((half - whole).reshape(-1, 2) @ [1, -1]) / lengths.sum(axis=1)
    batched = np.abs((half - alone).reshape(-1, 2) @ [1, -1]) / lengths.sum(axis=1)
    tokens = sum(len(prompt) + len(answer) for prompt, answer in given)
    return [
        _bound("bf16 against float32, nats per token of a margin", moved.max(), PER_TOKEN),
        _bound("bf16, batches against single rows, the same", batched.max(), PER_TOKEN),
        Row("scoring in bf16", f"{tokens / seconds:,.0f} tokens/s"),
    ]


def attention(machine: Machine) -> list[Row]:
    """Log-probs with flash attention against those with PyTorch's."""
    if not machine.gpu:
        raise Skipped("flash attention needs a GPU")
    needs("flash_attn")
    given = rows(machine, 32)
    lengths = np.array([len(answer) for _, answer in given])
    model = llama(machine, torch.bfloat16, attn_implementation="sdpa")
    usual = scored(model, given)
    model.set_attn_implementation("flash_attention_2")
    found = np.abs(scored(model, given) - usual) / lengths
    return [_bound("flash attention against sdpa, nats per token", found.max(), PER_TOKEN)]


def engines(machine: Machine) -> list[Row]:
    """The same answers from ``generate`` and from continuous batching, and how fast."""
    from sera_plugin.sampling.paged_engine import PagedEngine
    from sera_plugin.sampling.transformers_engine import TransformersEngine

    longest, count = (128, 64) if machine.gpu else (12, 6)
    settings = Sampling(
        num_candidates=2, temperature=1.0, top_p=1.0, max_new_tokens=longest, sequence_len=2048,
        ending=(STOP,), stops=frozenset({STOP}), pad_token_id=0, token_budget=65_536,
    )  # fmt: skip
    prompts = [Prompt(str(i), prompt) for i, (prompt, _) in enumerate(rows(machine, count))]
    found, lines = {}, []
    model = llama(machine, torch.float32)
    for engine in (TransformersEngine(), PagedEngine()):
        accelerator = Accelerator(cpu=not machine.gpu)
        with inference(model):
            sampler = Sampler(accelerator, replace(settings), engine)
            start = time.perf_counter()
            answers = sampler.completions(model, prompts, 42, 2, synced=False)
            seconds = time.perf_counter() - start
        found[engine.name] = answers
        tokens = sum(len(one.token_ids) for each in answers.values() for one in each)
        lines.append(Row(f"engine {engine.name}, float32", f"{tokens / seconds:,.0f} tokens/s"))
    one, other = found.values()
    equal = np.mean([a == b for i in one for a, b in zip(one[i], other[i], strict=True)])
    least = 0.9 if machine.gpu else 1.0
    return [
        Row(
            "answers that both engines share",
            f"{equal:.0%}",
            f"≥ {least:.0%}",
            bool(equal >= least),
        ),
        *lines,
    ]


def losses(machine: Machine) -> list[Row]:
    """Losses and gradients of every base on the device in float32 against float64 on the CPU."""
    torch.manual_seed(0)
    numbers = -50 * torch.rand(64, 4, dtype=torch.float64)
    tokens = torch.randint(1, 60, (64, 2))
    worst = 0.0
    for name in BASES:
        results = []
        for device, dtype in ((torch.device("cpu"), torch.float64), (machine.device, torch.float)):
            policy = numbers[:, :2].to(device, dtype).requires_grad_()
            step = Step.of(
                [str(i) for i in range(64)], policy, numbers[:, 2:].to(device, dtype),
                tokens.to(device), 0.1, base_of(name, 0.1),
            )  # fmt: skip
            step.loss().backward()
            assert policy.grad is not None
            results.append(policy.grad.double().cpu())
        worst = max(worst, float((results[1] - results[0]).abs().max() / results[0].abs().max()))
    return [_bound("gradients of the losses, relative", worst, 1e-4)]


def qlora(machine: Machine) -> list[Row]:
    """A base in 4 bits: margins at the start, and gradients after an evaluation."""
    needs("bitsandbytes", "peft")
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig

    from sera_plugin.host.quantised import keep_gradients

    compute = torch.bfloat16 if machine.gpu else torch.float32
    path = machine.folder / "base"
    llama(machine, torch.bfloat16).save_pretrained(path)
    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
    )  # fmt: skip
    place = {"": 0 if machine.gpu else "cpu"}
    load = partial(AutoModelForCausalLM.from_pretrained, path, quantization_config=bits)
    model = get_peft_model(load(device_map=place, dtype=compute), _lora(LoraConfig, True))
    keep_gradients(model)
    given = rows(machine, 16)
    policy = scored(model, given)
    with model.disable_adapter():
        reference = scored(model, given)
    margin = np.abs((policy - reference).reshape(-1, 2) @ [1, -1]).max()
    del model
    model = get_peft_model(load(device_map=place, dtype=compute), _lora(LoraConfig, False)).train()
    keep_gradients(model)
    tokens = torch.arange(3, 67, device=machine.device)[None]
    before = _gradients(model, tokens)
    scored(model, given)
    after = _gradients(model, tokens)
    moved = max(
        float((a - b).norm() / (a.norm() + 1e-12)) for a, b in zip(before, after, strict=True)
    )
    return [
        _bound("QLoRA: margins before training, nats", margin, 1e-6),
        _bound("QLoRA: gradients after an evaluation, relative", moved, 1e-2 * machine.gpu + 1e-6),
    ]


def memory(machine: Machine) -> list[Row]:
    """Peak memory of a DPO step with cached reference log-probs against one with both models."""
    if not machine.gpu:
        raise Skipped("peak memory is read from the GPU's allocator")
    peaks = {}
    for name, with_reference in (("plain DPO", True), ("SeRA", False)):
        policy = llama(machine, torch.bfloat16).train()
        policy.gradient_checkpointing_enable()
        reference = llama(machine, torch.bfloat16, seed=1).eval() if with_reference else None
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
        for _ in range(2):  # the second step has the optimizer's state
            torch.cuda.reset_peak_memory_stats()
            _dpo_step(machine, policy, reference, optimizer)
        peaks[name] = torch.cuda.max_memory_allocated() / 2**30
        del policy, reference, optimizer
        gc.collect()
        torch.cuda.empty_cache()
    words = ", ".join(f"{name} {peak:.1f} GiB" for name, peak in peaks.items())
    held = peaks["SeRA"] <= peaks["plain DPO"]
    return [Row("peak of a training step, reference models counted", words, "no more", held)]


def _dpo_step(machine: Machine, policy: Any, reference: Any, optimizer: Any) -> None:
    ids = torch.randint(3, 500, (8, 1024), device=machine.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    is_answer = torch.arange(1024, device=machine.device).expand(8, -1) >= 300
    found = answer_logps(policy, inputs, is_answer, 300)
    known = found.detach() - 1
    if reference is not None:
        with torch.no_grad():
            known = answer_logps(reference, inputs, is_answer, 300)
    both = [torch.stack(values.chunk(2), dim=1) for values in (found, known)]
    tokens = torch.full((4, 2), 724, device=machine.device)
    Step.of("abcd", *both, tokens, 0.1, base_of("sigmoid")).loss().backward()
    optimizer.step()
    optimizer.zero_grad()


def _lora(config: Any, start: bool) -> Any:
    torch.manual_seed(1)
    return config(r=8, target_modules="all-linear", init_lora_weights=start)


def _gradients(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    return [p.grad.float().clone() for p in model.parameters() if p.grad is not None]


def _bound(what: str, found: float, bar: float) -> Row:
    return Row(what, f"{float(found):.2g}", f"≤ {bar:g}", bool(found <= bar))


CHECKS = {
    "scoring": scoring,
    "attention": attention,
    "engines": engines,
    "losses": losses,
    "qlora": qlora,
    "memory": memory,
}
