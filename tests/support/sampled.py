"""Prompts, settings and a tiny model to sample from, and a server's engine for that model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import assets
import numpy as np
import torch
from accelerate import Accelerator

from sera_plugin.data.candidates import Source
from sera_plugin.host import vllm as host
from sera_plugin.host.vllm_settings import VllmSettings
from sera_plugin.sampling.sampler import Prompt, Sampler
from sera_plugin.sampling.settings import Sampling, Serving
from sera_plugin.sampling.transformers_engine import TransformersEngine
from sera_plugin.sampling.vllm_engine import VllmEngine
from sera_plugin.scoring.scorer import Scorer, inference

VOCABULARY, PAD, EOS, END = 40, 0, 1, 2
SETTINGS = Sampling(
    num_candidates=3,
    temperature=1.0,
    top_p=1.0,
    max_new_tokens=8,
    sequence_len=64,
    ending=(END, 3),
    stops=frozenset({EOS, END}),
    pad_token_id=PAD,
    token_budget=10_000,
)
draw = np.random.default_rng(0)
PROMPTS = [
    Prompt(f"example-{i}", tuple(int(t) for t in draw.integers(4, VOCABULARY, size)))
    for i, size in enumerate([3, 9, 1, 5, 5, 12, 2])
]
HERE = VllmSettings("server", "http://127.0.0.1:1", 2.0, 0.9, 64, False, False)


def small() -> Any:
    return assets.small_llama(VOCABULARY, pad_token_id=0, eos_token_id=EOS, bos_token_id=None)


@contextmanager
def of(policy: Any) -> Iterator[Any]:
    with inference(policy):
        yield policy


def engine_with(policy: Any, settings: VllmSettings) -> VllmEngine:
    accelerator = Accelerator(cpu=True)
    vllm = host.connect(policy, None, accelerator, settings)
    return VllmEngine(accelerator, vllm, settings.mode == "server")


def runs(policy: Any) -> Serving:
    """What ``serving`` takes: the models of a run, a scorer, and pairs."""
    rows = [
        {"prompt_ids": list(prompt.token_ids), "chosen_ids": [4, 5, 6, EOS]} for prompt in PROMPTS
    ]
    pairs: Any = SimpleNamespace(ids=tuple(p.example_id for p in PROMPTS), dataset=rows)
    policies: Any = SimpleNamespace(policy=lambda: of(policy), unwrapped=policy)
    scorer = Scorer(Accelerator(cpu=True), 0, 64, 10_000)
    return Serving(policies, scorer, pairs, Source.POLICY, 64)


def rollouts(engine: VllmEngine | None, policy: Any, **changes: Any) -> Any:
    chosen = TransformersEngine() if engine is None else engine
    sampler = Sampler(Accelerator(cpu=True), replace(SETTINGS, **changes), chosen)
    with torch.no_grad():
        return sampler.completions(policy, PROMPTS, 42, 2, synced=False)
