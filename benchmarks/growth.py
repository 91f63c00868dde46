"""Scoring and selection time against the number of pairs, generation against that of prompts.

``python -m benchmarks.growth PRESET FILE`` writes what it found to FILE. The model is as small as
models get: what is looked for is whether anything grows faster than the data.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from accelerate import Accelerator
from datasets import Dataset

from benchmarks.presets import PRESETS, Preset
from benchmarks.summary import line, slope
from sera_plugin.data.ids import permutation
from sera_plugin.data.margins import PairLogps, ensemble, log_ratios, margins, rank
from sera_plugin.data.pairs import OfflineCompletions, OfflinePairs
from sera_plugin.sampling.sampler import Prompt, Sampler
from sera_plugin.sampling.settings import Sampling
from sera_plugin.sampling.transformers_engine import TransformersEngine
from sera_plugin.scoring.scorer import Scorer, inference
from tests.support.assets import small_llama

VOCABULARY = 64
TOKEN_BUDGET = 16_384
MAX_NEW_TOKENS = 24


def measure(preset: Preset) -> dict[str, Any]:
    """Seconds by size of scoring, selection and generation, with slopes."""
    model = small_llama(VOCABULARY)
    selection = [_selection(n) for n in preset.growth_selection]
    pairs = [_scoring(model, n) for n in preset.growth_pairs]
    prompts = [_generation(model, n) for n in preset.growth_prompts]
    return {
        "scoring": _grown(preset.growth_pairs, [found["scoring"] for found in pairs]),
        "reading ids and lengths": _grown(
            preset.growth_pairs, [found["reading"] for found in pairs]
        ),
        "selection": {
            **_grown(preset.growth_selection, [found["seconds"] for found in selection]),
            "mib": [found["mib"] for found in selection],
        },
        "generation": _grown(preset.growth_prompts, prompts),
    }


def _grown(sizes: tuple[int, ...], seconds: list[float]) -> dict[str, Any]:
    per_item, fixed = line(sizes, seconds)
    return {
        "sizes": list(sizes),
        "seconds": seconds,
        "slope": slope(sizes, seconds),
        "seconds_per_item": per_item,
        "fixed_seconds": fixed,
    }


def _lists(draw: np.random.Generator, count: int, low: int, high: int) -> pa.Array:
    lengths = draw.integers(low, high + 1, size=count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = draw.integers(1, VOCABULARY, size=offsets[-1])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens))


def _dataset(count: int) -> Dataset:
    draw = np.random.default_rng(count)
    texts = [f"prompt {number}" for number in range(count)]
    columns = {
        "prompt": pa.array(texts),
        "chosen": pa.array(texts),
        "rejected": pa.array(texts),
        "prompt_ids": _lists(draw, count, 4, 12),
        "chosen_ids": _lists(draw, count, 2, 24),
        "rejected_ids": _lists(draw, count, 2, 24),
    }
    return Dataset(pa.table(columns))


def _scoring(model: torch.nn.Module, count: int) -> dict[str, float]:
    dataset = _dataset(count)
    start = time.perf_counter()
    pairs = OfflinePairs.of(dataset, 64)
    read = time.perf_counter()
    scorer = Scorer(Accelerator(cpu=True), 0, 64, TOKEN_BUDGET)
    with inference(model):
        scorer.logps(model, OfflineCompletions(pairs), f"{count} pairs")
    return {"reading": read - start, "scoring": time.perf_counter() - read}


def _selection(count: int) -> dict[str, float]:
    """From log-probs to the kept pairs and the order of the round, as a review does."""
    draw = np.random.default_rng(count)
    gc.collect()
    before = psutil.Process().memory_info().rss
    ids = tuple(f"{number:024x}" for number in draw.permutation(count))
    reference = PairLogps(ids, -draw.random(count), -draw.random(count))
    policy = PairLogps(ids, -draw.random(count), -draw.random(count))
    tokens = draw.integers(1, 50, size=count)
    previous = draw.normal(size=count)
    start = time.perf_counter()
    own = margins(log_ratios(policy, reference), tokens, tokens)
    kept = rank(ids, ensemble(own, previous, 0.3))[: int(0.7 * count)]
    permutation([ids[row] for row in kept], 7, 2, "order")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mib": (psutil.Process().memory_info().rss - before) / 2**20}


def _generation(model: Any, count: int) -> float:
    draw = np.random.default_rng(count)
    prompts = [
        Prompt(str(row), tuple(draw.integers(1, VOCABULARY, size=length).tolist()))
        for row, length in enumerate(draw.integers(4, 24, size=count))
    ]
    settings = Sampling(
        num_candidates=2,
        temperature=0.7,
        top_p=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        sequence_len=64,
        ending=(0,),
        stops=frozenset({0}),
        pad_token_id=0,
        token_budget=2_048,
    )
    sampler = Sampler(Accelerator(cpu=True), settings, TransformersEngine())
    with inference(model):
        start = time.perf_counter()
        sampler.completions(model, prompts, 7, 2, synced=False)
        return time.perf_counter() - start


if __name__ == "__main__":
    found = measure(PRESETS[sys.argv[1]])
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
